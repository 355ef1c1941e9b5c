"""What CosyVoice3's vocoder does otherwise than CosyVoice2's in a pass: pitch and excitation look ahead and back only
as far as `lighttts.models.f0` and `lighttts.models.source` say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.engine.vocoder_ops import Rows, TorchOps
from lighttts.engine.vocoder_signal import at_frame
from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.conv_past import LedConv1d
from lighttts.models.f0 import CausalConvRNNF0Predictor
from lighttts.models.rng import Stream, uniform
from lighttts.models.source import SteppedSource


class CausalPitch:
    """`CausalConvRNNF0Predictor` of rows, in float64 as that.

    Layers are products with matrices, for which GPUs have tensor cores in float64 too. Nothing is masked: rows are zero
    beyond their end, which the first layer looks ahead at, and the others never look ahead.
    """

    def __init__(self, predictor: CausalConvRNNF0Predictor) -> None:
        layers = [layer for layer in predictor.condnet if isinstance(layer, nn.Conv1d | LedConv1d)]
        self._weights = [layer.weight.permute(2, 1, 0).flatten(0, 1).contiguous() for layer in layers]
        self._biases = [layer.get_parameter("bias") for layer in layers]
        self._taps = [layer.weight.size(2) for layer in layers]
        self._classifier = predictor.classifier

    def __call__(self, mel: Tensor) -> Tensor:
        """Fundamental frequency (rows, frames) in Hz, float32, of `mel` (rows, frames, bins)."""
        rows, frames, _ = mel.shape
        hidden = mel.double()
        for index, (weight, bias, taps) in enumerate(zip(self._weights, self._biases, self._taps, strict=True)):
            hidden = F.pad(hidden, (0, 0, *((taps - 1, 0) if index else (0, taps - 1))))
            channels = hidden.size(2)
            seen = hidden.as_strided((rows, frames, taps * channels), (hidden.stride(0), channels, 1))
            hidden = F.elu(seen @ weight + bias)
        f0: Tensor = self._classifier(hidden)[..., 0]
        return f0.abs().float()


class CausalTorchOps(TorchOps):
    """`VocoderOps` of CosyVoice3's vocoder in plain torch."""

    def __init__(self, model: CausalHiFTGenerator) -> None:
        super().__init__(model)
        self._pitch = CausalPitch(model.f0_predictor)
        self._stepped = model.m_source

    def pitch(self, rows: Rows) -> Tensor:
        return self._pitch(rows.mel)

    def excite(self, rows: Rows, f0: Tensor) -> tuple[Tensor, Tensor]:
        last = (rows.frames - self._holding.unheard - 1).clamp(min=0)
        cycles, end = stepped_phases(self._stepped, f0, rows.phase, rows.held, last)
        made = self._stepped.merge(f0, torch.sin(cycles.float() * (2 * torch.pi)), self._noise(rows))
        return self._with_held(rows, made), end

    def _noise(self, rows: Rows) -> Tensor:
        """A number from 0 to 1 for each harmonic and sample (rows, harmonics + 1, samples)."""
        harmonics, device = self._stepped.config.harmonics + 1, rows.mel.device
        samples = torch.arange(rows.mel.size(1) * self._frame, device=device) + rows.first[:, None, None] * self._frame
        counters = samples * harmonics + torch.arange(harmonics, device=device)[:, None]
        return uniform(rows.seed[:, None, None], counters, Stream.VOCODER_NOISE)


def stepped_phases(
    source: SteppedSource, f0: Tensor, start: Tensor, onset: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """Cycles modulo 1 at the ends of the frames (rows, harmonics + 1, frames), and after frame `last` (rows,); float64.

    `start` (rows, harmonics + 1): cycles before frame `onset` (rows,).
    """
    steps = source.rates(f0).double() * source.config.frame
    sums = torch.cumsum(steps, dim=-1)
    cycles = (sums + (start[..., None] - (at_frame(sums, onset) - at_frame(steps, onset)))) % 1
    return cycles, at_frame(cycles, last)[..., 0]
