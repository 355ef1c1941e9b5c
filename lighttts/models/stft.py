"""Short-time Fourier transform and its inverse as products with a windowed basis.

The same numbers as `torch.stft` and `torch.istft` (centred, Hann window). Those make complex tensors, and the inverse
reads a check back from the device; here nothing leaves the device, so both can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FourierFrames(nn.Module):
    """Frames of `size` samples, one each `hop`. Spectra are (rows, size + 2, frames): real parts, then imaginary ones.

    The bases are no parameters and not in the weights.
    """

    analysis: Tensor
    synthesis: Tensor
    energy: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size = size
        self.hop = hop
        bins = torch.arange(size // 2 + 1, dtype=torch.float64)
        angles = 2 * torch.pi / size * bins[:, None] * torch.arange(size)
        window = torch.hann_window(size, dtype=torch.float64)
        # A real signal's other half of the spectrum mirrors this one, but for the first and the last bin.
        share = torch.where((bins == 0) | (bins == size // 2), 1.0, 2.0)[:, None] / size
        basis = torch.cat([angles.cos(), -angles.sin()])
        self.register_buffer("analysis", (basis * window).float()[:, None], persistent=False)
        self.register_buffer("synthesis", (basis * share.repeat(2, 1) * window).float()[:, None], persistent=False)
        self.register_buffer("energy", window.square().float()[None, None], persistent=False)

    def analyse(self, signal: Tensor) -> Tensor:
        """Signal (rows, samples), more than size / 2 samples -> spectra (rows, size + 2, samples / hop + 1)."""
        half = self.size // 2
        return self.inside(F.pad(signal[:, None], (half, half), mode="reflect"))

    def inside(self, signal: Tensor) -> Tensor:
        """Spectra (rows, size + 2, (samples - size) / hop + 1) of the frames in `signal` (rows, 1, samples)."""
        return F.conv1d(signal, self.analysis, stride=self.hop)

    def synthesise(self, spectra: Tensor) -> Tensor:
        """Spectra (rows, size + 2, frames) -> signal (rows, (frames - 1) x hop)."""
        half = self.size // 2
        return self.overlapped(spectra, half, half)

    def overlapped(self, spectra: Tensor, skip: int, cut: int) -> Tensor:
        """The signal (rows, samples) under the frames of `spectra`, without `skip` samples before and `cut` behind.

        Where frames before or behind these are missing, it is not that of the whole.
        """
        added = F.conv_transpose1d(spectra, self.synthesis, stride=self.hop)[:, 0, skip:-cut]
        windows = F.conv_transpose1d(torch.ones_like(spectra[:1, :1]), self.energy, stride=self.hop)
        return added / windows[:, 0, skip:-cut]
