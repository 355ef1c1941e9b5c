"""The velocity estimator as an ONNX graph whose batch, time and past are free.

Inputs and outputs have the names and the layout of CosyVoice's `bin/export_onnx.py` (x, mask, mu, t, spks, cond ->
estimator_out, channels before time), and the state of a stream beside them, so that a hop costs what its own frames
cost. Numbers are of the exported dtype, but for `t`, which is float32: half precision would move 1000 t by a quarter.

    x, mu, cond           (rows, mel, time)         noisy mel, frame features, the prompt's mel
    mask                  (rows, 1, past + time)    1 where a column is a frame of the row, 0 where it is padding
    t                     (rows,)                   time of the flow, in [0, 1]
    spks                  (rows, mel)               projected speaker
    tails                 (rows, TAIL, channels)    what the convolutions saw last; zeros before the first frame
    past.I.keys, .values  (rows, past, width)       of attention layer I, aligned to the right
    estimator_out         (rows, mel, time)         velocity
    new_tails             (rows, TAIL, channels)
    new.I.keys, .values   (rows, time, width)       of the frames of this call only

A call starts where a chunk starts, and a frame sees the valid columns up to the end of its chunk. `past` may be 0: the
graph is then one chunk-masked pass. Padding of the past stands on the left, padding of the new frames on the right.
Hidden columns are multiplied by zero: what they hold must be finite.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lighttts.models import estimator as estimator_module
from lighttts.models import streaming as streaming_module
from lighttts.models.estimator import CausalConditionalDecoder
from lighttts.models.streaming import TAIL, CausalConv1d, StreamedAttention, Window

OPSET = 18
"""The first with layer normalisation as one operator whose reductions every reader has; upstream's own choice too."""
HIDDEN = -30_000.0
"""What is added to the score of a hidden column: exp() of it is zero in every precision, and float16 can hold it."""

CONDITIONS = ("x", "mask", "mu", "t", "spks", "cond")
"""Inputs as upstream names and orders them."""
VELOCITY = "estimator_out"


@dataclass(frozen=True)
class EstimatorShape:
    """What does not depend on the call: mel bins, attention layers and their width, the convolutions' channels."""

    mel: int
    layers: int
    width: int
    channels: int

    @classmethod
    def of(cls, estimator: CausalConditionalDecoder) -> EstimatorShape:
        """Of an estimator whose layers are numbered (`number_layers`)."""
        attention = [module for module in estimator.modules() if isinstance(module, StreamedAttention)]
        convolutions = (module for module in estimator.modules() if isinstance(module, CausalConv1d))
        channels = sum(module.in_channels for module in convolutions)
        return cls(estimator.config.out_channels, len(attention), attention[0].width, channels)

    def pairs(self, prefix: str) -> list[str]:
        """Names of the keys and values of every layer, "past" or "new", in the order of a cache's memory."""
        return [f"{prefix}.{layer}.{kind}" for layer in range(self.layers) for kind in ("keys", "values")]

    @property
    def inputs(self) -> list[str]:
        return [*CONDITIONS, "tails", *self.pairs("past")]

    @property
    def outputs(self) -> list[str]:
        return [VELOCITY, "new_tails", *self.pairs("new")]


class CachedWindow(Window):
    """A pass with keys, values and tails of the past given as tensors, which collects those of the new frames.

    `lengths`: int64 (rows,), new frames that are real.
    """

    def __init__(self, mask: Tensor, pairs: Sequence[Tensor], tails: Tensor, lengths: Tensor) -> None:
        super().__init__(mask)
        self.pairs = pairs
        self.tails = tails
        self._ends = (lengths[:, None] + torch.arange(TAIL, device=tails.device))[..., None]
        self._new: dict[int, tuple[Tensor, Tensor]] = {}
        self._new_tails: dict[int, Tensor] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._new[layer] = keys, values
        past_keys, past_values = self.pairs[2 * layer : 2 * layer + 2]
        return torch.cat([past_keys, keys], dim=1), torch.cat([past_values, values], dim=1)

    def lead(self, first: int, x: Tensor) -> Tensor:
        led = torch.cat([self.tails[..., first : first + x.size(-1)], x], dim=1)
        self._new_tails[first] = led.gather(1, self._ends.expand(-1, -1, x.size(-1)))
        return led

    @property
    def new_pairs(self) -> list[Tensor]:
        """Keys and values of the new frames, (rows, new, width) each, in the order of `pairs`."""
        return [tensor for layer in sorted(self._new) for tensor in self._new[layer]]

    @property
    def new_tails(self) -> Tensor:
        return torch.cat([self._new_tails[first] for first in sorted(self._new_tails)], dim=-1)


class CachedEstimator(nn.Module):
    """The estimator with the graph's inputs and outputs (see the module's text)."""

    def __init__(self, estimator: CausalConditionalDecoder) -> None:
        super().__init__()
        self.estimator = estimator
        self.shape = EstimatorShape.of(estimator)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        tails: Tensor,
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        frames = [tensor.transpose(1, 2) for tensor in (x, mu, cond)]
        lengths = mask[:, 0, mask.size(2) - x.size(2) :].long().sum(dim=1)
        window = CachedWindow(self._scores(mask, x), pairs, tails, lengths)
        velocity = self.estimator(frames[0], frames[1], spks, frames[2], self.estimator.time_mlp(t), window)
        return velocity.transpose(1, 2), window.new_tails, *window.new_pairs

    def _scores(self, mask: Tensor, x: Tensor) -> Tensor:
        """What is added to each query's scores, (rows, 1, time, past + time)."""
        frames = torch.arange(x.size(2), device=x.device)
        columns = torch.arange(mask.size(2), device=x.device) - (mask.size(2) - x.size(2))
        chunk = self.estimator.config.chunk
        ends = torch.div(frames, chunk, rounding_mode="trunc") * chunk + chunk
        later = (columns[None] >= ends[:, None]).to(x.dtype)
        hidden = 1 - mask + later
        return (hidden.clamp(max=1) * HIDDEN)[:, None]


def export_estimator(estimator: CausalConditionalDecoder) -> bytes:
    """The serialised ONNX graph of an estimator ready for inference, in the dtype and with the weights it has.

    Its layers must be numbered (`number_layers`), as those of a flow's are.
    """
    wrapped = CachedEstimator(estimator).eval()
    shape, chunk = wrapped.shape, estimator.config.chunk
    parameter = next(estimator.parameters())

    def example(*size: int) -> Tensor:
        return torch.ones(size, device=parameter.device, dtype=parameter.dtype)

    rows, time, past = 2, 2 * chunk, chunk
    mel = [example(rows, shape.mel, time) for _ in range(3)]
    t = example(rows).float()
    pairs = [example(rows, past, shape.width) for _ in range(2 * shape.layers)]
    tails = example(rows, TAIL, shape.channels)
    arguments = (mel[0], example(rows, 1, past + time), mel[1], t, example(rows, shape.mel), mel[2], tails, *pairs)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet():
        path = Path(folder) / "estimator.onnx"
        torch.onnx.export(
            wrapped,
            arguments,
            path,
            input_names=shape.inputs,
            output_names=shape.outputs,
            dynamic_axes=_free_axes(shape),
            opset_version=OPSET,
            # The exporter that follows this one needs a package of its own; the graph is simple enough for either.
            dynamo=False,
        )
        return path.read_bytes()


def _free_axes(shape: EstimatorShape) -> dict[str, dict[int, str]]:
    """Names of the axes that are free, by input and output."""
    axes = {name: {0: "rows", 2: "time"} for name in ("x", "mu", "cond", VELOCITY)}
    axes["mask"] = {0: "rows", 2: "columns"}
    axes.update({name: {0: "rows"} for name in ("t", "spks", "tails", "new_tails")})
    axes.update({name: {0: "rows", 1: "past"} for name in shape.pairs("past")})
    axes.update({name: {0: "rows", 1: "time"} for name in shape.pairs("new")})
    return axes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own age, which nobody who runs a worker can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def graph_revision() -> str:
    """Hexadecimal digest of the code that the graph follows from."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in (__file__, estimator_module.__file__, streaming_module.__file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
