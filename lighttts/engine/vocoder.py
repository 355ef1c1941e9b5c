"""Vocoder engine: hops of many requests, of any lengths, in one replay of a CUDA graph.

`lighttts.models.hift_stream.vocode` is the reference: it computes hops of one length together, kernel by kernel, and
waits for their launch most of the time. Here a batch is padded to the next of a few sizes, for each of which a pass
(`lighttts.engine.vocoder_net`) is captured at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lighttts.engine.capture import Captures
from lighttts.engine.vocoder_causal import CausalTorchOps
from lighttts.engine.vocoder_holding import Holding
from lighttts.engine.vocoder_net import VocoderNet
from lighttts.engine.vocoder_ops import Passed, Rows, TorchOps, VocoderOps
from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.hift import Generator
from lighttts.models.hift_stream import VocoderHop, VocoderResult, VocoderState, as_int64, vocode

FIRST = 64
"""Mel frames of a row for hops of 25 tokens, which are the first of their request."""
HOPS = (104, 204)
"""Mel frames of hops of up to 50 and 100 tokens, and of 2 more, which a final hop may have."""


@dataclass(frozen=True)
class Buffers:
    """What the passes of one length read: `rows` for the largest batch, and where its integers lie side by side."""

    rows: Rows
    numbers: Tensor

    def first(self, count: int) -> Rows:
        return Rows(*(tensor[:count] for tensor in self.rows))


class Vocoder:
    """Batches of up to `max_batch` hops; more are computed batch after batch.

    Everything stays on the model's device: nothing here waits for it. Longer hops than the longest of `lengths`, which
    must be all that their request has unless the vocoder is CosyVoice2's, and those without seed are left to the
    reference. Convolutions multiply numbers of `dtype` with `ops`: half precision with Triton kernels on a GPU, float32
    in plain torch on a CPU, unless others are given.

    With the published dimensions the graphs hold about 62 MB of a GPU's memory for each hop of `max_batch`, of
    CosyVoice3's 70: what the last stage of the longest row keeps, 38 bytes for each of its numbers.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Generator, *, max_batch: int, ops: VocoderOps | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._model = model
        self._gpu = model.device.type == "cuda"
        dtype = dtype or (torch.float16 if self._gpu else torch.float32)
        self._net = VocoderNet(model, ops or _own_ops(model), dtype)
        self._max_batch = max_batch
        self._batches = [1 << power for power in range((max_batch - 1).bit_length())] + [max_batch]
        self.holding = Holding.of(model)
        self.lengths = (FIRST, *(frames + self.holding.frames for frames in HOPS))
        self._buffers = self._allocate()
        self._empty = torch.zeros(max(self.lengths), model.config.bins, device=model.device)
        self._nothing = Rows(*(torch.zeros_like(tensor[0]) for tensor in self._buffers[self.lengths[0]].rows))
        self._passes = self._prepare()

    def _allocate(self) -> dict[int, Buffers]:
        config, rows, device = self._model.config, self._max_batch, self._model.device
        numbers = torch.zeros(rows, 4, dtype=torch.int64, device=device)
        source = torch.zeros(rows, self.holding.excited * config.source.frame, device=device)
        audio = torch.zeros(rows, self.holding.faded * config.source.frame, device=device)
        phase = torch.zeros(rows, config.source.harmonics + 1, dtype=torch.float64, device=device)
        buffers = {}
        for length in self.lengths:
            mel = torch.zeros(rows, length, config.bins, device=device)
            frames, held, first, seed = numbers.unbind(1)
            buffers[length] = Buffers(Rows(mel, frames, held, first, seed, source, audio, phase), numbers)
        return buffers

    def _prepare(self) -> dict[tuple[int, int], Callable[[], Passed]]:
        """A pass of each length and batch; the largest first, whose memory the others then find room in."""
        captures = Captures() if self._gpu else None
        passes = {}
        for length in sorted(self.lengths, reverse=True):
            for batch in sorted(self._batches, reverse=True):
                run = partial(self._net, self._buffers[length].first(batch))
                passes[length, batch] = run if captures is None else captures.capture(run)
        return passes

    @torch.inference_mode()
    def vocode(self, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
        """Audio of each hop, in the order of `hops`, as `lighttts.models.hift_stream.vocode` describes it.

        What it returns shares memory with nothing that changes; results of one call may share memory with each other.
        """
        fits = [index for index, hop in enumerate(hops) if hop.seed is not None and _frames(hop) <= max(self.lengths)]
        others = sorted(set(range(len(hops))).difference(fits))
        results = dict(zip(others, vocode(self._model, [hops[index] for index in others]), strict=True))
        fits.sort(key=lambda index: _frames(hops[index]))
        for begin in range(0, len(fits), self._max_batch):
            group = fits[begin : begin + self._max_batch]
            results.update(zip(group, self._vocode([hops[index] for index in group]), strict=True))
        return [results[index] for index in range(len(hops))]

    def _vocode(self, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
        longest = max(_frames(hop) for hop in hops)
        length = min(length for length in self.lengths if length >= longest)
        batch = min(batch for batch in self._batches if batch >= len(hops))
        self._fill(self._buffers[length], hops, length, batch)
        return self._results(hops, self._passes[length, batch]())

    def _fill(self, buffers: Buffers, hops: Sequence[VocoderHop], length: int, batch: int) -> None:
        """Puts `hops` into the first rows, and marks what is left of the batch as unused."""
        numbers = [(_frames(hop), self._excited(hop), _first(hop), as_int64(hop.seed or 0)) for hop in hops]
        numbers += [(0, 0, 0, 0)] * (batch - len(hops))
        # From memory that is not pinned a copy would wait for the device.
        host = torch.tensor(numbers, dtype=torch.int64, pin_memory=self._gpu)
        buffers.numbers[:batch].copy_(host, non_blocking=True)
        mels = []
        for hop in hops:
            held = () if hop.held is None else (hop.held.mel,)
            mels += [*held, hop.mel, self._empty[: length - _frames(hop)]]
        states = [hop.held or self._nothing for hop in hops]
        count, rows = len(hops), buffers.rows
        torch.cat(mels, out=rows.mel[:count].view(count * length, -1))
        torch.stack([state.source for state in states], out=rows.source[:count])
        torch.stack([state.audio for state in states], out=rows.audio[:count])
        torch.stack([state.phase for state in states], out=rows.phase[:count])

    def _results(self, hops: Sequence[VocoderHop], passed: Passed) -> list[VocoderResult]:
        """Copies of what the next pass will overwrite, cut to each hop."""
        holding, frame = self.holding, self._model.config.source.frame
        count, sizes = len(hops), [holding.excited * frame, holding.faded * frame]
        audio = passed.audio[:count].clone()
        kept = None if all(hop.final for hop in hops) else (passed.held[:count].clone(), passed.phase[:count].clone())
        results = []
        for row, hop in enumerate(hops):
            frames, heard = _frames(hop), self._excited(hop) - holding.faded if hop.held else 0
            if hop.final or kept is None:
                results.append(VocoderResult(audio[row, heard * frame : frames * frame], None))
                continue
            source, old, mel = kept[0][row].tensor_split((sizes[0], sum(sizes)))
            first = max(0, frames - holding.frames)
            mel = mel.view(holding.frames, -1)[: frames - first]
            state = VocoderState(mel, source, old, kept[1][row], _first(hop) + first)
            results.append(VocoderResult(audio[row, heard * frame : (frames - holding.unheard) * frame], state))
        return results

    def _excited(self, hop: VocoderHop) -> int:
        """Frames at the start of a row whose excitation is known."""
        return 0 if hop.held is None else hop.held.mel.size(0) - self.holding.unheard + self.holding.faded


def _own_ops(model: Generator) -> VocoderOps:
    """The operations of the model's device. Triton comes with torch only where there is a GPU."""
    if model.device.type != "cuda":
        return CausalTorchOps(model) if isinstance(model, CausalHiFTGenerator) else TorchOps(model)
    from lighttts.kernels.vocoder import CausalTritonOps, TritonOps

    return CausalTritonOps(model) if isinstance(model, CausalHiFTGenerator) else TritonOps(model)


def _frames(hop: VocoderHop) -> int:
    """Mel frames of a row, those held included."""
    return hop.mel.size(0) + (0 if hop.held is None else hop.held.mel.size(0))


def _first(hop: VocoderHop) -> int:
    """The request's frame that the row starts with."""
    return 0 if hop.held is None else hop.held.first
