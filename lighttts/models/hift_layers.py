"""What CosyVoice2's and CosyVoice3's vocoders have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

MAX_MAGNITUDE = 100.0


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, alpha learnt per channel (Liu Ziyin et al., arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        sine = torch.sin(x * alpha)
        return torch.addcmul(x, sine * (1 / (alpha + 1e-9)), sine)


def spectra_of(layer: Tensor) -> Tensor:
    """The spectra (rows, size + 2, frames), real parts then imaginary ones, that the last layer's output stands for.

    Its first half are the magnitudes' logarithms, the other one what the phases are the sine of.
    """
    magnitude, phase = layer.chunk(2, dim=1)
    magnitude, phase = magnitude.exp().clamp(max=MAX_MAGNITUDE), torch.sin(phase)
    return torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)


def fold_weight_norm(model: nn.Module) -> None:
    """Replace each weight given as direction and length by their product: the same numbers, for inference only."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
