"""Discriminators of the vocoder's adversarial training: over periods of the waveform and over complex spectrograms.

HiFi-GAN's multi-period discriminator (Kong et al., arXiv:2010.05646) at half its width, and a multi-resolution one on
real and imaginary parts (Defossez et al., arXiv:2210.13438). Losses are least squares with feature matching.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (32, 128, 256, 512)
RESOLUTIONS = (2048, 1024, 512)
SPECTRUM_CHANNELS = 32
SLOPE = 0.1

Judgement = tuple[Tensor, list[Tensor]]  # scores of patches, and every layer's features


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample: the waveform [B, N] folded to [B, 1, N / period, period]."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, *PERIOD_CHANNELS, PERIOD_CHANNELS[-1])
        strides = (3,) * len(PERIOD_CHANNELS) + (1,)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (s, 1), padding=(2, 0)))
            for a, b, s in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> Judgement:
        audio = F.pad(audio[:, None], (0, -audio.shape[1] % self.period), mode="reflect")
        return _judge(audio.reshape(len(audio), 1, -1, self.period), self.convs, self.last)


class SpectrumDiscriminator(nn.Module):
    """Looks at the complex spectrogram of one resolution: [B, 2, frames, bins]."""

    window: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        width = SPECTRUM_CHANNELS
        shapes = [(2, (3, 9), (1, 1)), *[(width, (3, 9), (1, 2))] * 3, (width, (3, 3), (1, 1))]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(inputs, width, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2)))
            for inputs, kernel, stride in shapes
        )
        self.last = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> Judgement:
        spectrum = torch.stft(audio, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        return _judge(torch.view_as_real(spectrum).permute(0, 3, 2, 1), self.convs, self.last)


def _judge(x: Tensor, convs: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x.contiguous(memory_format=torch.channels_last)), SLOPE)
        features.append(x)
    score: Tensor = last(x)
    return score, [*features, score]


class Discriminators(nn.Module):
    """All of them: audio [B, N] float32 -> one judgement each."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList([PeriodDiscriminator(p) for p in PERIODS])
        self.each.extend(SpectrumDiscriminator(n) for n in RESOLUTIONS)

    def forward(self, audio: Tensor) -> list[Judgement]:
        return [judge(audio) for judge in self.each]


def split(judgements: list[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    """Judgements of a batch of real audio followed by as much generated audio, taken apart."""
    halves = [(score.chunk(2), [f.chunk(2) for f in features]) for score, features in judgements]
    real, fake = ([(score[i], [f[i] for f in features]) for score, features in halves] for i in (0, 1))
    return real, fake


def discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Least squares: real patches towards 1, generated ones towards 0. Summed over the discriminators."""
    terms = [(1 - r).square().mean() + f.square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack([term.float() for term in terms]).sum()


def adversarial_loss(fake: list[Judgement]) -> Tensor:
    """Generated patches towards 1. Summed over the discriminators."""
    return torch.stack([(1 - score).square().mean().float() for score, _ in fake]).sum()


def matching_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Mean absolute difference of features, real ones held fixed. Summed over layers and discriminators."""
    pairs = [(r, f) for (_, rs), (_, fs) in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack([(f - r.detach()).abs().mean().float() for r, f in pairs]).sum()
