"""The speaker encoder's network: a small time-delay network over filter banks.

An x-vector (Snyder et al. 2018) with residual dilated convolutions and mean-and-deviation pooling.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.weights import load_into, load_weights
from training.features import WHISPER_RATE, KaldiFbank, Resample
from training.store import SAMPLE_RATE

BANDS, EMBEDDING = 80, 192


class Block(nn.Module):
    """A dilated convolution with a residual path, [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + F.relu(self.norm(self.conv(x)))
        return out


class SpeakerEncoder(nn.Module):
    """Mean-subtracted Kaldi filter bank [B, T, 80] -> speaker embedding [B, 192]; T of at least 5 frames."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.entry = nn.Conv1d(BANDS, channels, 5, padding=2, bias=False)
        self.entry_norm = nn.BatchNorm1d(channels)
        self.blocks = nn.ModuleList(Block(channels, dilation) for dilation in (1, 2, 3, 4, 5))
        self.embed = nn.Linear(2 * channels, EMBEDDING)

    def forward(self, fbank: Tensor) -> Tensor:
        x = F.relu(self.entry_norm(self.entry(fbank.transpose(1, 2))))
        for block in self.blocks:
            x = block(x)
        mean = x.mean(-1, keepdim=True)
        deviation = ((x - mean).square().mean(-1) + 1e-5).sqrt()
        out: Tensor = self.embed(torch.cat([mean[..., 0], deviation], dim=1))
        return out


def load_speaker(path: Path) -> SpeakerEncoder:
    """The encoder with the weights that `training.speaker` wrote, for inference. Raises `ModelError`."""
    encoder = SpeakerEncoder()
    load_into(encoder, load_weights(path), str(path))
    return encoder.requires_grad_(False).eval()


class Listener(nn.Module):
    """Audio to embedding as the front end does it: 24 kHz -> 16 kHz -> filter bank less its mean -> encoder."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.resample = Resample(WHISPER_RATE, SAMPLE_RATE)
        self.fbank = KaldiFbank(BANDS)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] float32 at 24 kHz -> [B, 192]."""
        fbank = self.fbank(self.resample(audio))
        out: Tensor = self.encoder(fbank - fbank.mean(1, keepdim=True))
        return out
