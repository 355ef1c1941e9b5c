"""One pass of the HiFT vocoder over rows of different lengths, with shapes that depend on nothing but a bucket's size.

The same network as `lighttts.models.hift`, arranged for a GPU: see `lighttts.engine.vocoder_layers`. Nothing is read
back to the host and every shape is fixed, so a pass can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.engine import vocoder_signal as signal
from lighttts.engine.vocoder_layers import Convolution, Finish, Made, Span, convolve
from lighttts.models.hift import HiFTGenerator, ResBlock
from lighttts.models.hift_stream import OVERLAP, cross_fade

SPECTRUM = 32
"""Channels that a spectrum's are padded to, so that each position begins at an address tensor cores can read from."""
POST_SLOPE = 0.01
"""Slope of the leaky ReLU before the last layer; not the configured one upstream either."""


class Rows(NamedTuple):
    """What a pass reads. Rows that no request uses have `frames` 0.

    `mel` (rows, frames, bins): what was held back, then what is new; what follows does not matter. `frames`: how many
    of them there are, `held` of which (OVERLAP or 0) were held back; `first`: the request's frame that `mel` starts
    with; `seed`: of the noise; all (rows,) int64. `source`, `audio` (rows, OVERLAP x samples a frame) and `phase`
    (rows, harmonics + 1) float64 are those of `VocoderState`; the former two do not matter where `held` is 0.
    """

    mel: Tensor
    frames: Tensor
    held: Tensor
    first: Tensor
    seed: Tensor
    source: Tensor
    audio: Tensor
    phase: Tensor


@dataclass(frozen=True)
class Passed:
    """What a pass makes: `audio` (rows, samples), of which what is before a row's own end is true; and, in case more
    follows, the last OVERLAP frames' source, audio and mel beside each other in `held` (rows, numbers), and the
    `phase` (rows, harmonics + 1) float64.
    """

    audio: Tensor
    held: Tensor
    phase: Tensor


class BlockPairs:
    """Residual blocks side by side: pairs of convolutions, the Snakes before each."""

    def __init__(self, blocks: list[ResBlock], dtype: torch.dtype) -> None:
        def alphas(snakes: list[nn.Module]) -> Tensor:
            return torch.stack([snake.get_parameter("alpha").float() for snake in snakes])

        by_pair = [list(pairs) for pairs in zip(*(block.convs1 for block in blocks), strict=True)]
        self.first = [Convolution.beside(pairs, dtype) for pairs in by_pair]
        seconds = zip(*(block.convs2 for block in blocks), strict=True)
        self.second = [Convolution.beside(list(pairs), dtype) for pairs in seconds]
        self.before = [alphas(list(pair)) for pair in zip(*(block.activations1 for block in blocks), strict=True)]
        self.between = [alphas(list(pair)) for pair in zip(*(block.activations2 for block in blocks), strict=True)]


class VocoderNet:
    """The vocoder of `model` with its convolutions, but for the pitch, in `dtype`; its numbers between them too."""

    def __init__(self, model: HiFTGenerator, dtype: torch.dtype) -> None:
        config = model.config
        self.model = model
        self.dtype = dtype
        self.samples = config.source.frame
        self.pre = Convolution.beside([model.conv_pre], dtype)
        self.post = Convolution.beside([model.conv_post], dtype)
        self.ups = [Convolution.up(up, dtype) for up in model.ups]
        self.downs = [Convolution.down(down, SPECTRUM, dtype) for down in model.source_downs]
        kinds = len(config.blocks)
        blocks = [block for block in model.resblocks if isinstance(block, ResBlock)]
        self.blocks = [BlockPairs(blocks[i * kinds : (i + 1) * kinds], dtype) for i in range(len(config.rates))]
        sources = [block for block in model.source_resblocks if isinstance(block, ResBlock)]
        self.source_blocks = [BlockPairs([block], dtype) for block in sources]
        rates = [math.prod(config.rates[:stage]) for stage in range(len(config.rates) + 1)]
        self.spans = [Span(rate) for rate in rates[:-1]] + [Span(rates[-1], 1)]
        factors = [rates[-1] // rate for rate in rates[1:]]
        self.front = max(factor // 2 for factor in factors)
        self.back = max(factor - factor // 2 for factor in factors) - 1

    def __call__(self, rows: Rows) -> Passed:
        source, phase = self._source(rows)
        layer = self._decode(rows, source)
        ends = rows.frames * self.samples
        audio = signal.synthesise(self.model.fourier, layer, ends, self.model.config.limit)
        held = OVERLAP * self.samples
        faded = cross_fade(rows.audio, audio[:, :held], level=True)
        audio = torch.cat([faded.where(rows.held[:, None] > 0, audio[:, :held]), audio[:, held:]], dim=1)
        mel_at, sample_at = _tail(rows.frames, OVERLAP), _tail(ends, held)
        mel = rows.mel.gather(1, mel_at[..., None].expand(-1, -1, rows.mel.size(2)))
        return Passed(
            audio, torch.cat([source.gather(1, sample_at), audio.gather(1, sample_at), mel.flatten(1)], dim=1), phase
        )

    def _source(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Excitation (rows, samples) and its phase at each row's end."""
        source = self.model.m_source
        f0 = signal.held_pitch(self._pitch(rows), rows.frames)
        rates = source.rates(f0).double()
        centres, end = signal.phases(source, rates, rows.phase, rows.held, rows.frames)
        made = signal.excite(source, f0, rates, centres, rows.seed, rows.first)
        held = rows.source.size(1)
        kept = rows.source.where(rows.held[:, None] > 0, made[:, :held])
        return torch.cat([kept, made[:, held:]], dim=1), end

    def _pitch(self, rows: Rows) -> Tensor:
        """Pitch (rows, frames) in Hz, in float32 as `ConvRNNF0Predictor` says."""
        predictor, cudnn = self.model.f0_predictor, torch.backends.cudnn
        exists = _before(rows.frames, rows.mel.size(1))[:, None]
        hidden = rows.mel.transpose(1, 2).where(exists, 0.0)
        with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False):
            for layer in predictor.condnet:
                hidden = layer(hidden).where(exists, 0.0)
        f0: Tensor = predictor.classifier(hidden.transpose(1, 2))[..., 0]
        return f0.abs()

    def _decode(self, rows: Rows, source: Tensor) -> Tensor:
        """The last layer (rows, samples / hop + 1, size + 2), float32."""
        frames, longest = rows.frames, rows.mel.size(1)
        x = rows.mel.where(_before(frames, longest)[..., None], 0.0).to(self.dtype)[None]
        spectra = self._spectra(source, frames)
        slope, last = self.model.config.slope, len(self.ups) - 1
        x = _value(convolve(x, self.pre, frames, self.spans[0], longest, Finish(slope=slope, dtype=self.dtype)))
        for stage, (before, after) in enumerate(pairwise(self.spans)):
            x = _value(convolve(x, self.ups[stage], frames, before, x.size(2), Finish(dtype=self.dtype)))
            x = x.view(1, len(frames), longest * after.per, -1)
            x = self._stage(stage, x, spectra, frames, POST_SLOPE if stage == last else slope)
        return _value(convolve(x, self.post, frames, self.spans[-1], x.size(2), Finish(dtype=torch.float32)))[0]

    def _spectra(self, source: Tensor, frames: Tensor) -> Tensor:
        """Spectra (rows, positions, SPECTRUM) of the excitation, `front` positions in, with zeros around them."""
        made = signal.analyse(self.model.fourier, source, frames * self.samples)
        return F.pad(made, (0, SPECTRUM - made.size(2), self.front, self.back)).to(self.dtype)

    def _stage(self, stage: int, up: Tensor, spectra: Tensor, frames: Tensor, slope: float) -> Tensor:
        """From the up-sampled trunk to the input of the next stage's first layer."""
        span, blocks, sources = self.spans[stage + 1], self.blocks[stage], self.source_blocks[stage]
        down, factor = self.downs[stage], self.spans[-1].per // span.per
        positions = up.size(2) + span.more
        rows, length, width = spectra.shape
        groups = spectra.as_strided(
            (1, rows, up.size(2) + 1, factor * width),
            (0, length * width, factor * width, 1),
            (self.front - factor // 2) * width,
        )
        made = convolve(groups, down, frames, span, positions, Finish(dtype=self.dtype, alphas=sources.before[0]))
        finish = Finish(beside=up, shift=span.more, dtype=self.dtype, alphas=blocks.before[0])
        made = self._pairs(sources, made, frames, span, finish)
        # The blocks run side by side from the same trunk.
        made = Made(_value(made).expand(len(blocks.before[0]), -1, -1, -1), made.snaked)
        return _value(self._pairs(blocks, made, frames, span, Finish(total=True, slope=slope, dtype=self.dtype)))

    def _pairs(self, blocks: BlockPairs, made: Made, frames: Tensor, span: Span, last: Finish) -> Made:
        """`blocks` from their input and its Snakes to their result, which `last` finishes."""
        inner = [Finish(dtype=self.dtype, alphas=alphas) for alphas in blocks.before[1:]]
        for first, between, second, finish in zip(
            blocks.first, blocks.between, blocks.second, [*inner, last], strict=True
        ):
            snaked = _snaked(made)
            positions = snaked.size(2)
            snaked = _snaked(convolve(snaked, first, frames, span, positions, Finish(alphas=between)))
            made = convolve(snaked, second, frames, span, positions, replace(finish, residual=made.value))
        return made


def _value(made: Made) -> Tensor:
    assert made.value is not None
    return made.value


def _snaked(made: Made) -> Tensor:
    assert made.snaked is not None
    return made.snaked


def _before(ends: Tensor, length: int) -> Tensor:
    """Whether a position lies before its row's end, (rows, length)."""
    return torch.arange(length, device=ends.device) < ends[:, None]


def _tail(ends: Tensor, length: int) -> Tensor:
    """The last `length` positions before each row's end (rows, length), not before the row's beginning."""
    return (ends[:, None] - length + torch.arange(length, device=ends.device)).clamp(min=0)
