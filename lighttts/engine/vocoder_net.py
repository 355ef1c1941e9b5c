"""One pass of the HiFT vocoder over rows of different lengths, with shapes that depend on nothing but a bucket's size.

The same network as `lighttts.models.hift` and `lighttts.models.causal_hift`, arranged for a GPU: see
`lighttts.engine.vocoder_layers`. Nothing is read back to the host and every shape is fixed, so a pass can be captured
in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from lighttts.engine.vocoder_layers import Convolution, Finish, Made, Span, lead_of
from lighttts.engine.vocoder_ops import SPECTRUM, Margins, Passed, Rows, VocoderOps
from lighttts.models.causal_hift import CausalResBlock
from lighttts.models.hift import Generator, ResBlock

POST_SLOPE = 0.01
"""Slope of the leaky ReLU before the last layer; not the configured one upstream either."""


class BlockPairs:
    """Residual blocks side by side, which have the same number of pairs: each pair's convolutions and Snakes."""

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        blocks = [module for module in modules if isinstance(module, ResBlock | CausalResBlock)]
        firsts = zip(*(block.convs1 for block in blocks), strict=True)
        seconds = zip(*(block.convs2 for block in blocks), strict=True)
        self.first = [Convolution.beside(convs, dtype) for convs in firsts]
        self.second = [Convolution.beside(convs, dtype) for convs in seconds]
        self.before = [_alphas(snakes) for snakes in zip(*(block.activations1 for block in blocks), strict=True)]
        self.between = [_alphas(snakes) for snakes in zip(*(block.activations2 for block in blocks), strict=True)]


def _alphas(snakes: Iterable[nn.Module]) -> Tensor:
    return torch.stack([snake.get_parameter("alpha").float() for snake in snakes])


class VocoderNet:
    """The vocoder of `model`. Convolutions multiply numbers of `dtype`; sums, the pitch, the trunk that residual blocks
    add to, and all that is no convolution are float32.

    Against float32 throughout, the audio's error (root of the mean square, of the audio's deviation) is 7e-4 with
    float16 as with tf32, which cuDNN's float32 is by default, and 5e-3 with bfloat16; with the trunk in float16, 1e-3.
    """

    def __init__(self, model: Generator, ops: VocoderOps, dtype: torch.dtype) -> None:
        config = model.config
        self._ops = ops
        self._dtype = dtype
        self._slope = config.slope
        self._pre = Convolution.beside([model.conv_pre], dtype)
        self._post = Convolution.beside([model.conv_post], dtype)
        self._ups = [Convolution.up(up, dtype) for up in model.ups]
        self._downs = [Convolution.down(down, SPECTRUM, dtype) for down in model.source_downs]
        kinds = len(config.blocks)
        blocks = list(model.resblocks)
        self._blocks = [BlockPairs(blocks[i * kinds : (i + 1) * kinds], dtype) for i in range(len(config.rates))]
        self._sources = [BlockPairs([block], dtype) for block in model.source_resblocks]
        rates = [math.prod(config.rates[:stage]) for stage in range(len(config.rates) + 1)]
        self._spans = [Span(rate) for rate in rates[:-1]] + [Span(rates[-1], 1)]
        factors = [rates[-1] // rate for rate in rates[1:]]
        self._leads = [lead_of(down) for down in model.source_downs]
        after = max(factor - lead for factor, lead in zip(factors, self._leads, strict=True)) - 1
        self._margins = Margins(max(self._leads), after)

    def __call__(self, rows: Rows) -> Passed:
        source, phase = self._ops.excite(rows, self._ops.pitch(rows))
        return self._ops.synthesise(rows, source, phase, self._decode(rows, source))

    def _decode(self, rows: Rows, source: Tensor) -> Tensor:
        """The last layer (rows, samples / hop + 1, size + 2), float32."""
        frames, spans = rows.frames, self._spans
        spectra = self._ops.analyse(source, frames, self._margins, self._dtype)
        finish = Finish(slope=self._slope, dtype=self._dtype)
        x = self._layer(rows.mel.to(self._dtype)[None], self._pre, frames, spans[0], finish)
        for stage, (before, after) in enumerate(pairwise(spans)):
            x = self._layer(x, self._ups[stage], frames, before, Finish(dtype=torch.float32))
            up = x.view(1, len(frames), rows.mel.size(1) * after.per, -1)
            last = stage == len(self._ups) - 1
            x = self._stage(stage, up, spectra, frames, POST_SLOPE if last else self._slope)
        return self._layer(x, self._post, frames, spans[-1], Finish(dtype=torch.float32))[0]

    def _stage(self, stage: int, up: Tensor, spectra: Tensor, frames: Tensor, slope: float) -> Tensor:
        """From the up-sampled trunk to the input of the next stage's first layer."""
        span, blocks, sources = self._spans[stage + 1], self._blocks[stage], self._sources[stage]
        factor, (rows, length, width) = self._spans[-1].per // span.per, spectra.shape
        groups = spectra.as_strided(
            (1, rows, up.size(2) + 1, factor * width),
            (0, length * width, factor * width, 1),
            (self._margins.before - self._leads[stage]) * width,
        )
        finish = Finish(dtype=torch.float32, alphas=sources.before[0])
        made = self._ops.convolve(groups, self._downs[stage], frames, span, up.size(2) + span.more, finish)
        finish = Finish(beside=up, shift=span.more, dtype=torch.float32, alphas=blocks.before[0])
        made = self._pairs(sources, made, frames, span, finish)
        # The blocks run side by side from the same trunk.
        made = Made(_there(made.value).expand(len(blocks.before[0]), -1, -1, -1), made.snaked)
        made = self._pairs(blocks, made, frames, span, Finish(total=True, slope=slope, dtype=self._dtype))
        return _there(made.value)

    def _pairs(self, blocks: BlockPairs, made: Made, frames: Tensor, span: Span, last: Finish) -> Made:
        """`blocks` from their input and its Snakes to their result, which `last` finishes."""
        value, snaked = made
        finishes = [Finish(dtype=torch.float32, alphas=alphas) for alphas in blocks.before[1:]] + [last]
        for first, between, second, finish in zip(blocks.first, blocks.between, blocks.second, finishes, strict=True):
            x = _there(snaked)
            _, snaked = self._ops.convolve(x, first, frames, span, x.size(2), Finish(alphas=between))
            # Let go of at once: what is made next may take its memory.
            x = _there(snaked)
            value, snaked = self._ops.convolve(x, second, frames, span, x.size(2), replace(finish, residual=value))
        return Made(value, snaked)

    def _layer(self, x: Tensor, layer: Convolution, frames: Tensor, span: Span, finish: Finish) -> Tensor:
        """A layer on its own, whose result is as long as its input."""
        return _there(self._ops.convolve(x, layer, frames, span, x.size(2), finish).value)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
