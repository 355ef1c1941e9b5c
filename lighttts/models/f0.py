"""Pitch contour of a mel, as CosyVoice's `hifigan/f0_predictor.py` predicts it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lighttts.models.conv_past import LedConv1d, Past


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


class CausalConvRNNF0Predictor(nn.Module):
    """Mel (rows, bins, frames) -> fundamental frequency in Hz (rows, frames); sees `LOOK_AHEAD` frames to come and
    `LOOK_BACK` that went before.

    Computed in float64 as upstream: what a hop and the whole make of one frame must not differ, for the phase of the
    excitation sums it up.
    """

    LOOK_AHEAD = 3
    LOOK_BACK = 8

    def __init__(self, bins: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [weight_norm(nn.Conv1d(bins, channels, self.LOOK_AHEAD + 1)), nn.ELU()]
        for _ in range(4):
            layers += [weight_norm(LedConv1d(channels, channels, self.LOOK_BACK // 4 + 1)), nn.ELU()]
        self.condnet = nn.ModuleList(layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor, past: Past, *, final: bool) -> Tensor:
        """The pitch of the frames whose look-ahead there is, which all have if no frame follows (`final`)."""
        led = past.lead(mel.double(), self.LOOK_AHEAD, zeros=0)
        hidden = self.condnet[0](F.pad(led, (0, self.LOOK_AHEAD)) if final else led)
        for layer in list(self.condnet)[1:]:
            hidden = layer(hidden, past) if isinstance(layer, LedConv1d) else layer(hidden)
        f0: Tensor = self.classifier(hidden.transpose(1, 2))[..., 0]
        return f0.abs().float()


def without_tf32() -> AbstractContextManager[None]:
    """Keeps cuDNN's convolutions in full float32."""
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False
    )
    return flags
