"""CosyVoice3's HiFT vocoder: mel to 24 kHz audio, causal but for a few frames of look-ahead.

The layers and parameter names are those of CosyVoice's `hifigan/generator.py` (`CausalHiFTGenerator`). A stream's mel
may be given in pieces: what each layer saw last is in a `Past`, so that nothing is computed twice and the audio is that
of the whole mel up to float rounding. Inside, tensors are (rows, channels, time).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lighttts.models.conv_past import LedConv1d, Past
from lighttts.models.f0 import CausalConvRNNF0Predictor
from lighttts.models.hift_config import Block, HiFTConfig
from lighttts.models.hift_layers import Snake, spectra_of
from lighttts.models.source import SteppedSource
from lighttts.models.stft import FourierFrames


class CausalResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution."""

    def __init__(self, channels: int, taps: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def convolution(dilation: int) -> nn.Module:
            conv: nn.Module = weight_norm(LedConv1d(channels, channels, taps, dilation=dilation))
            return conv

        self.convs1 = nn.ModuleList(convolution(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(convolution(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in layers:
            x = x + conv2(activation2(conv1(activation1(x), past)), past)
        return x


class Upsampling(LedConv1d):
    """Each column `rate` times, then a causal convolution."""

    def __init__(self, inputs: int, outputs: int, taps: int, rate: int) -> None:
        super().__init__(inputs, outputs, taps)
        self.rate = rate

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return super().forward(x.repeat_interleave(self.rate, dim=-1), past)


class CausalHiFTGenerator(nn.Module):
    """Mel (rows, frames, bins) -> audio (rows, samples), in pieces.

    Of a piece after which more follows, the last frames of the mel are not heard yet: as many as the pitch and the
    first layer (`config.look_ahead`) look ahead, and one that is cut off as upstream does, although only some samples
    of it depend on what follows. With upstream's sizes these are eight.
    """

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        assert config.look_ahead is not None
        self.config = config
        self._ahead = config.look_ahead
        self.m_source = SteppedSource(config.source)
        self.conv_pre = weight_norm(nn.Conv1d(config.bins, config.channels, self._ahead + 1))
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, taps) in enumerate(zip(config.rates, config.up_taps, strict=True)):
            width = config.channels >> (stage + 1)
            self.ups.append(weight_norm(Upsampling(2 * width, width, taps, rate)))
            self.source_downs.append(_down(config.fourier_size + 2, width, math.prod(config.rates[stage + 1 :])))
            self.source_resblocks.append(CausalResBlock(width, *config.source_blocks[stage]))
            self.resblocks.extend(CausalResBlock(width, *block) for block in config.blocks)
        self.conv_post = weight_norm(LedConv1d(width, config.fourier_size + 2, 7))
        self.f0_predictor = CausalConvRNNF0Predictor(config.bins, config.f0_channels)
        self.fourier = FourierFrames(config.fourier_size, config.fourier_hop)

    @property
    def device(self) -> torch.device:
        return self.fourier.energy.device

    @property
    def held_back(self) -> int:
        """Frames at the end of a piece that are not heard before more follows."""
        return self.f0_predictor.LOOK_AHEAD + self._ahead + 1

    @property
    def look_back(self) -> int:
        """Frames before a frame that its audio still depends on, by way of their mel or their excitation."""
        config, hop = self.config, self.config.fourier_hop
        # The window, the last layer's taps, and the column that is mirrored to the front.
        samples, column, excited = config.fourier_size // 2 + 7 * hop, hop, 0
        stages = zip(config.rates, config.up_taps, config.source_blocks, strict=True)
        for rate, taps, source_block in reversed(list(stages)):
            samples += max(map(_reach, config.blocks)) * column
            excited = max(excited, samples + (_reach(source_block) + 1) * column + config.fourier_size // 2)
            samples += (taps - 1 + rate - 1) * column
            column *= rate
        return max(math.ceil(max(samples, excited) / config.source.frame), self.f0_predictor.LOOK_BACK)

    def pitch(self, mel: Tensor, past: Past, *, final: bool) -> Tensor:
        """Fundamental frequency in Hz, (rows, frames), of the frames that follow those it is known of.

        Unless `final`, it lags behind the mel by `f0_predictor.LOOK_AHEAD` frames.
        """
        f0: Tensor = self.f0_predictor(mel.transpose(1, 2), past, final=final)
        return f0

    def decode(self, mel: Tensor, source: Tensor, past: Past, *, final: bool) -> Tensor:
        """Audio (rows, samples) in [-limit, limit] that follows that of the piece before.

        `mel` (rows, frames, bins) and excitation `source` (rows, samples): what is new of each, the latter of the
        frames whose pitch is known. A first piece that is not `final` has more frames than are held back.
        """
        spectra = self._analyse(source, past, final=final)
        lag = self.f0_predictor.LOOK_AHEAD
        led = past.lead(mel.transpose(1, 2), lag + self._ahead, zeros=0)
        x: Tensor = self.conv_pre(F.pad(led, (0, self._ahead)) if final else led[..., :-lag])
        kinds = len(self.config.blocks)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.config.slope), past)
            if stage == len(self.ups) - 1 and not past.begun:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectra, past), past)
            first, *others = self.resblocks[stage * kinds : (stage + 1) * kinds]
            mixed = first(x, past)
            for block in others:
                mixed = mixed + block(x, past)
            x = mixed / kinds
        # The slope before the last layer is not the configured one upstream either.
        made = spectra_of(self.conv_post(F.leaky_relu(x), past))
        return self._synthesise(made, past, final=final).clamp(-self.config.limit, self.config.limit)

    def _analyse(self, source: Tensor, past: Past, *, final: bool) -> Tensor:
        """The spectra of the excitation up to the frames that the first layer gives: one more at the very start, whose
        middle is the first sample.
        """
        half, hop = self.config.fourier_size // 2, self.config.fourier_hop
        ahead = self._ahead * self.config.source.frame
        led = past.lead(source[:, None], ahead + half - hop, zeros=0)
        if not past.begun:
            led = F.pad(led, (half, 0), mode="reflect")
        return self.fourier.inside(F.pad(led, (0, half), mode="reflect") if final else led[..., : half - ahead])

    def _synthesise(self, made: Tensor, past: Past, *, final: bool) -> Tensor:
        half, hop, frame = self.config.fourier_size // 2, self.config.fourier_hop, self.config.source.frame
        led = past.lead(made, frame // hop + half // hop, zeros=0)
        return self.fourier.overlapped(led, half + (hop if past.begun else 0), half + (0 if final else frame))


def _reach(block: Block) -> int:
    """Columns that a residual block looks back."""
    taps, dilations = block
    return sum((taps - 1) * (dilation + 1) for dilation in dilations)


def _down(inputs: int, width: int, factor: int) -> LedConv1d:
    if factor == 1:
        return LedConv1d(inputs, width, 1)
    # There is one spectrum more than columns to be made, at the start.
    return LedConv1d(inputs, width, 2 * factor, stride=factor, zeros=factor - 1)
