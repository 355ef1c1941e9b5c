"""Pitch contour of a mel, as CosyVoice's `hifigan/f0_predictor.py` predicts it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class ConvRNNF0Predictor(nn.Module):
    """Mel (rows, bins, frames) -> fundamental frequency in Hz (rows, frames); sees five frames to each side.

    Computed in full float32 on every device: the phase of the excitation sums this up, so that the rounding of tf32,
    which cuDNN's convolutions use otherwise, would soon be whole cycles.
    """

    def __init__(self, bins: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (bins, channels, channels, channels, channels):
            layers += [weight_norm(nn.Conv1d(inputs, channels, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        with without_tf32():
            hidden: Tensor = self.condnet(mel)
        f0: Tensor = self.classifier(hidden.transpose(1, 2))[..., 0]
        return f0.abs()


def without_tf32() -> AbstractContextManager[None]:
    """Keeps cuDNN's convolutions in full float32."""
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False
    )
    return flags
