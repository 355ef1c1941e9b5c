"""What a pass of the vocoder consists of, and those operations in plain torch.

The GPU's are `lighttts.kernels.vocoder.TritonOps`. Neither reads anything beyond a row's true end as other than zero.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.engine import vocoder_signal as signal
from lighttts.engine.vocoder_holding import Holding
from lighttts.engine.vocoder_layers import Convolution, Finish, Made, Span, convolve
from lighttts.models.f0 import ConvRNNF0Predictor, without_tf32
from lighttts.models.hift import Generator
from lighttts.models.hift_stream import cross_fade

SPECTRUM = 32
"""Channels that a spectrum's are padded to, so that each position begins at an address tensor cores can read from."""


class Rows(NamedTuple):
    """What a pass reads. Rows that no request uses have `frames` 0.

    `mel` (rows, frames, bins): what was held, what is new, then zeros. `frames`: how many frames there are; `held`: of
    how many the excitation is known, which is in `source`; `first`: the request's frame that `mel` starts with; `seed`:
    of the noise; all (rows,) int64. `source`, `audio` (rows, samples) and `phase` (rows, harmonics + 1) float64 are
    those of `VocoderState`; what lies beyond `held` frames of the former two does not matter.
    """

    mel: Tensor
    frames: Tensor
    held: Tensor
    first: Tensor
    seed: Tensor
    source: Tensor
    audio: Tensor
    phase: Tensor


class Passed(NamedTuple):
    """What a pass makes: `audio` (rows, samples), of which what is before a row's own end is true; and, in case more
    follows, the last frames' source, audio and mel beside each other in `held` (rows, numbers), as many of each as
    `Holding` says, from the same frame on; and the `phase` (rows, harmonics + 1) float64 after those `excited`.
    """

    audio: Tensor
    held: Tensor
    phase: Tensor


class Margins(NamedTuple):
    """Positions of zeros before and after a row's spectra."""

    before: int
    after: int


class VocoderOps(Protocol):
    """Operations of one model. Every shape of a result follows from the arguments' shapes."""

    def pitch(self, rows: Rows) -> Tensor:
        """Fundamental frequency (rows, frames) in Hz, in float32 as `ConvRNNF0Predictor` says."""

    def excite(self, rows: Rows, f0: Tensor) -> tuple[Tensor, Tensor]:
        """Excitation (rows, samples), what was held back first, from a pitch (rows, frames) that is right up to each
        row's end; and its phase (rows, harmonics + 1) float64 there.
        """

    def analyse(self, source: Tensor, frames: Tensor, margins: Margins, dtype: torch.dtype) -> Tensor:
        """Spectra (rows, `margins` + samples / hop + 1, SPECTRUM) of the excitation."""

    def convolve(
        self, x: Tensor, layer: Convolution, frames: Tensor, span: Span, positions: int, finish: Finish
    ) -> Made:
        """See `lighttts.engine.vocoder_layers.convolve`."""

    def synthesise(self, rows: Rows, source: Tensor, phase: Tensor, layer: Tensor) -> Passed:
        """Audio from the last layer (rows, samples / hop + 1, size + 2), cross-faded with what was held back."""


class TorchOps:
    """`VocoderOps` of either vocoder in plain torch, with CosyVoice2's pitch and excitation."""

    def __init__(self, model: Generator) -> None:
        self._holding = Holding.of(model)
        self._source = model.m_source
        self._predictor = model.f0_predictor
        self._fourier = model.fourier
        self._limit = model.config.limit
        self._frame = model.config.source.frame

    def pitch(self, rows: Rows) -> Tensor:
        assert isinstance(self._predictor, ConvRNNF0Predictor)
        exists = (torch.arange(rows.mel.size(1), device=rows.mel.device) < rows.frames[:, None])[:, None]
        hidden = rows.mel.transpose(1, 2)
        with without_tf32():
            for layer in self._predictor.condnet:
                hidden = layer(hidden).where(exists, 0.0) if isinstance(layer, nn.ELU) else layer(hidden)
        f0: Tensor = self._predictor.classifier(hidden.transpose(1, 2))[..., 0]
        return f0.abs()

    def excite(self, rows: Rows, f0: Tensor) -> tuple[Tensor, Tensor]:
        f0 = signal.held_pitch(f0, rows.frames)
        rates = self._source.rates(f0).double()
        centres, end = signal.phases(self._source, rates, rows.phase, rows.held, rows.frames)
        made = signal.excite(self._source, f0, rates, centres, rows.seed, rows.first)
        return self._with_held(rows, made), end

    def _with_held(self, rows: Rows, made: Tensor) -> Tensor:
        """`made` (rows, samples) with the excitation that is known in its place."""
        width = rows.source.size(1)
        known = torch.arange(width, device=made.device) < rows.held[:, None] * self._frame
        return torch.cat([rows.source.where(known, made[:, :width]), made[:, width:]], dim=1)

    def analyse(self, source: Tensor, frames: Tensor, margins: Margins, dtype: torch.dtype) -> Tensor:
        made = signal.analyse(self._fourier, source, frames * self._frame)
        return F.pad(made, (0, SPECTRUM - made.size(2), *margins)).to(dtype)

    def convolve(
        self, x: Tensor, layer: Convolution, frames: Tensor, span: Span, positions: int, finish: Finish
    ) -> Made:
        return convolve(x, layer, frames, span, positions, finish)

    def synthesise(self, rows: Rows, source: Tensor, phase: Tensor, layer: Tensor) -> Passed:
        holding, frame = self._holding, self._frame
        audio = signal.synthesise(self._fourier, layer, rows.frames * frame, self._limit)
        faded = holding.faded * frame
        if faded:
            both = cross_fade(rows.audio, audio[:, :faded], level=True)
            audio = torch.cat([both.where(rows.held[:, None] > 0, audio[:, :faded]), audio[:, faded:]], dim=1)
        start = (rows.frames - holding.frames).clamp(min=0)
        mel = _cut(rows.mel.transpose(1, 2), start, holding.frames).transpose(1, 2)
        parts = [_cut(source, start * frame, holding.excited * frame), _cut(audio, start * frame, faded)]
        return Passed(audio, torch.cat([*parts, mel.flatten(1)], dim=1), phase)


def _cut(x: Tensor, start: Tensor, length: int) -> Tensor:
    """`length` columns from `start` (rows,) on of each row of `x` (rows, ..., columns); the last one goes on."""
    at = (start[:, None] + torch.arange(length, device=x.device)).clamp(max=x.size(-1) - 1)
    return x.gather(-1, at if x.dim() == 2 else at[:, None].expand(-1, x.size(1), -1))
