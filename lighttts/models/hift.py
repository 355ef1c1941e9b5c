"""CosyVoice2's HiFT vocoder: mel to 24 kHz audio; and the loader of any.

HiFTNet (Li et al., arXiv:2309.09493): a HiFi-GAN generator fed with a neural source-filter excitation, whose last layer
gives the short-time spectrum of the audio. Layers and parameter names are those of CosyVoice's `hifigan/generator.py`
(`HiFTGenerator`). Inside, tensors are (rows, channels, frames).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.directory import ModelDirectory
from lighttts.models.f0 import ConvRNNF0Predictor
from lighttts.models.hift_config import HiFTConfig
from lighttts.models.hift_layers import Snake, fold_weight_norm, spectra_of
from lighttts.models.source import HarmonicSource
from lighttts.models.stft import FourierFrames
from lighttts.models.weights import load_into


class ResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution."""

    def __init__(self, channels: int, taps: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def convolution(dilation: int) -> nn.Module:
            padding = (taps - 1) * dilation // 2
            conv: nn.Module = weight_norm(nn.Conv1d(channels, channels, taps, dilation=dilation, padding=padding))
            return conv

        self.convs1 = nn.ModuleList(convolution(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(convolution(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in layers:
            x = x + conv2(activation2(conv1(activation1(x))))
        return x


class HiFTGenerator(nn.Module):
    """Mel (rows, frames, bins) -> audio (rows, frames x samples a frame)."""

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.config = config
        self.m_source = HarmonicSource(config.source)
        self.conv_pre = weight_norm(nn.Conv1d(config.bins, config.channels, 7, padding=3))
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, taps) in enumerate(zip(config.rates, config.up_taps, strict=True)):
            width = config.channels >> (stage + 1)
            padding = (taps - rate) // 2
            self.ups.append(weight_norm(nn.ConvTranspose1d(2 * width, width, taps, rate, padding=padding)))
            self.source_downs.append(_down(config.fourier_size + 2, width, math.prod(config.rates[stage + 1 :])))
            self.source_resblocks.append(ResBlock(width, *config.source_blocks[stage]))
            self.resblocks.extend(ResBlock(width, *block) for block in config.blocks)
        self.conv_post = weight_norm(nn.Conv1d(width, config.fourier_size + 2, 7, padding=3))
        self.f0_predictor = ConvRNNF0Predictor(config.bins, config.f0_channels)
        self.fourier = FourierFrames(config.fourier_size, config.fourier_hop)

    @property
    def device(self) -> torch.device:
        return self.fourier.energy.device

    def forward(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Audio and pitch (rows, frames) in Hz, for training. `noise`: standard normal (rows, samples)."""
        f0 = self.pitch(mel)
        return self.decode(mel, self.m_source(f0, noise)), f0

    def pitch(self, mel: Tensor) -> Tensor:
        """Fundamental frequency in Hz, (rows, frames)."""
        f0: Tensor = self.f0_predictor(mel.transpose(1, 2))
        return f0

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Audio (rows, samples) in [-limit, limit] from mel (rows, frames, bins) and excitation (rows, samples)."""
        spectra = self.fourier.analyse(source)
        x: Tensor = self.conv_pre(mel.transpose(1, 2))
        kinds = len(self.config.blocks)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.config.slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectra))
            first, *others = self.resblocks[stage * kinds : (stage + 1) * kinds]
            mixed = first(x)
            for block in others:
                mixed = mixed + block(x)
            x = mixed / kinds
        # The slope before the last layer is not the configured one upstream either.
        audio = self.fourier.synthesise(spectra_of(self.conv_post(F.leaky_relu(x))))
        return audio.clamp(-self.config.limit, self.config.limit)


def _down(inputs: int, width: int, factor: int) -> nn.Conv1d:
    if factor == 1:
        return nn.Conv1d(inputs, width, 1)
    return nn.Conv1d(inputs, width, 2 * factor, factor, padding=factor // 2)


Generator: TypeAlias = HiFTGenerator | CausalHiFTGenerator


def build_hift(directory: ModelDirectory) -> Generator:
    """The vocoder that a directory's yaml describes, with fresh parameters. Raises `ModelError`."""
    config = HiFTConfig.read(directory.settings)
    return CausalHiFTGenerator(config) if config.causal else HiFTGenerator(config)


def load_hift(directory: ModelDirectory, device: torch.device | str = "cpu") -> Generator:
    """The vocoder of a model directory, ready for inference. Raises `ModelError`.

    Always float32, as upstream: neither the pitch nor the exponential of the last layer survives less.
    """
    model = build_hift(directory)
    load_into(model, directory.load_weights("hift.pt"), str(directory.path("hift.pt")))
    if isinstance(model, CausalHiFTGenerator):
        # Before its weights are folded: in float32 they would be rounded, and a quarter of all pitches with them.
        model.f0_predictor.double()
    fold_weight_norm(model)
    return model.requires_grad_(False).eval().to(device)
