"""The speech tokenizer: Whisper log-mel, 100 frames a second -> 25 discrete tokens a second.

Convolutions only, so a token depends on about half a second around it and any length is processed alike. The
bottleneck is finite scalar quantisation (Mentzer et al. 2023): a few numbers, each rounded to one of a few levels,
read as one index in mixed radix. In training a small decoder with little context must say from the tokens which
phoneme is being spoken, with which pitch, and what the spectrum is, which makes tokens phonetic first and acoustic
second.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.weights import load_into, load_weights

BANDS = 128
FRAMES_A_TOKEN = 4
LEVELS = (5, 5, 5, 5, 3)
PHONES = 178  # the teacher's phoneme ids


def codes(levels: tuple[int, ...] = LEVELS) -> int:
    """How many different tokens there are."""
    total = 1
    for level in levels:
        total *= level
    return total


def quantise(z: Tensor, levels: Tensor) -> Tensor:
    """[..., d] -> the same, squashed and rounded to integers -(L-1)/2 .. (L-1)/2; gradients pass straight through."""
    half = (levels - 1) / 2
    bounded = torch.tanh(z) * half
    return bounded + (torch.round(bounded) - bounded).detach()


def to_index(q: Tensor, levels: Tensor) -> Tensor:
    """Quantised numbers [..., d] -> token [...] int64, first dimension the lowest digit."""
    digits = torch.round(q + (levels - 1) / 2)
    base = torch.cumprod(torch.cat([torch.ones_like(levels[:1]), levels[:-1]]), 0)
    return (digits * base).sum(-1).long()


def from_index(index: Tensor, levels: Tensor) -> Tensor:
    """The quantised numbers [..., d] float32 of tokens [...]: the inverse of `to_index`."""
    base = torch.cumprod(torch.cat([torch.ones_like(levels[:1]), levels[:-1]]), 0)
    digits = torch.div(index[..., None], base, rounding_mode="floor") % levels
    return digits - (levels - 1) / 2


class Block(nn.Module):
    """Residual block over [B, T, C]: layer norm, convolution over time, GELU, projection."""

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, inner, kernel, padding=kernel // 2)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.out(F.gelu(y))
        return out


class Encoder(nn.Module):
    """What ships: features [B, 128, T] and their lengths [B] -> numbers to quantise [B, ceil(T / 4), d]."""

    levels: Tensor

    def __init__(self, width: int = 192, blocks: int = 5, levels: tuple[int, ...] = LEVELS) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        self.entry = nn.Conv1d(BANDS, width, 5, stride=2, padding=2)
        self.halve = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(width, width * 4 // 3, 5) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, len(levels))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Frames beyond a row's length are taken as zeros throughout, so padding changes no token."""
        halves = torch.div(lengths + 1, 2, rounding_mode="floor")
        tokens = torch.div(halves + 1, 2, rounding_mode="floor")
        x = features * _mask(lengths, features.shape[2])[:, None]
        x = F.gelu(self.entry(x))
        x = x * _mask(halves, x.shape[2])[:, None]
        x = F.gelu(self.halve(x)).transpose(1, 2)
        mask = _mask(tokens, x.shape[1])[..., None]
        x = x * mask
        for block in self.blocks:
            x = block(x) * mask
        z: Tensor = self.project(self.norm(x))
        return z

    def tokens(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[B, 128, T], [B] -> tokens [B, ceil(T / 4)] int64; those beyond a row's length mean nothing."""
        return to_index(quantise(self(features, lengths).float(), self.levels), self.levels)


def load_encoder(path: Path) -> Encoder:
    """The encoder with the weights that `training.train_tokenizer` wrote, for inference. Raises `ModelError`."""
    encoder = Encoder()
    load_into(encoder, load_weights(path), str(path))
    return encoder.requires_grad_(False).eval()


class Decoder(nn.Module):
    """Only for training: quantised numbers [B, T, d] -> what was spoken, at 100 frames a second."""

    def __init__(self, width: int = 192, levels: tuple[int, ...] = LEVELS) -> None:
        super().__init__()
        self.entry = nn.Linear(len(levels), width)
        self.blocks = nn.ModuleList(Block(width, 2 * width, 3) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, FRAMES_A_TOKEN * width)
        self.fine = Block(width, width, 5)
        self.phone = nn.Linear(width, PHONES)
        self.mel = nn.Linear(width, BANDS)
        self.pitch = nn.Linear(width, 2)  # voicing logit, log-pitch

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phoneme logits [B, 4T, 178], log-mel [B, 4T, 128], voicing logit and log-pitch [B, 4T, 2]."""
        x = self.entry(q)
        for block in self.blocks:
            x = block(x)
        x = self.spread(self.norm(x)).unflatten(-1, (FRAMES_A_TOKEN, -1)).flatten(1, 2)
        x = self.fine(x)
        return self.phone(x), self.mel(x), self.pitch(x)


def _mask(lengths: Tensor, frames: int) -> Tensor:
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).float()
