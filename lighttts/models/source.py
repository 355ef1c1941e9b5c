"""Excitation of the vocoder: harmonics of a pitch contour, with noise where the voice has none.

Neural source-filter model of Wang et al., arXiv:1904.12088, as CosyVoice's `SineGen2` computes it at 24 kHz: the phase
is summed per mel frame and, for CosyVoice2, interpolated linearly between the frames' centres. Upstream adds a random
phase to each harmonic's first sample only, where neither looks, so published weights know coherent harmonics and no
phase is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class SourceConfig:
    """`harmonics`: above the fundamental; `frame`: samples of a mel frame; `voiced_above`: Hz.

    Sines have amplitude `amplitude`. Noise has deviation `noise` where voiced, a third of `amplitude` elsewhere.
    """

    sample_rate: int
    frame: int
    harmonics: int
    amplitude: float
    noise: float
    voiced_above: float


@dataclass(frozen=True)
class Onset:
    """Where the phase is known: `phase` float64 (rows, harmonics + 1), in cycles, at the start of frame `frame`."""

    phase: Tensor
    frame: int


class HarmonicSource(nn.Module):
    """Pitch (rows, frames) in Hz -> excitation (rows, samples), `frame` samples a mel frame.

    `noise` is one standard normal number a sample (rows, samples), or None for silence. Upstream draws one for each
    harmonic; the merging layer's weights turn those into one normal number a sample, which is drawn here at once.
    No gradient reaches the pitch: the derivative of a phase grows with time.
    """

    def __init__(self, config: SourceConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.harmonics + 1, 1)

    def forward(self, f0: Tensor, noise: Tensor | None) -> Tensor:
        """The excitation as upstream computes it: the phase starts at zero and stands still outside the outermost
        centres; arithmetic is float32, off by a hundredth of a radian after half a minute.
        """
        phase = torch.cumsum(self.rates(f0), dim=-1) * 2 * torch.pi * self.config.frame
        phase = F.interpolate(phase, scale_factor=self.config.frame, mode="linear")
        return self.merge(f0, phase.sin(), noise)

    def onwards(self, f0: Tensor, noise: Tensor | None, onset: Onset) -> tuple[Tensor, Tensor]:
        """The excitation with a phase that goes through `onset`, and the phase at its end for the next `Onset`.

        The phase is summed in float64, modulo one cycle where it is expanded to samples, and goes on at the nearest
        frame's rate outside the outermost centres: a signal made in pieces has no seam.
        """
        frame = self.config.frame
        rates = self.rates(f0).double()
        centres = torch.cumsum(rates * frame, dim=-1)
        known = centres[..., onset.frame] - rates[..., onset.frame] * (frame / 2)
        centres = centres + (onset.phase - known)[..., None]
        end = (centres[..., -1] + rates[..., -1] * (frame / 2)) % 1
        return self.merge(f0, self.sines(rates, centres), noise), end

    def sines(self, rates: Tensor, centres: Tensor) -> Tensor:
        """Harmonics (rows, harmonics + 1, samples), float32, from each frame's `rates` and the cycles `centres` at its
        centre, (rows, harmonics + 1, frames) in float64.
        """
        frame = self.config.frame
        offsets = torch.arange(frame, device=rates.device, dtype=torch.float32) + (0.5 - frame / 2)
        before, after = rates.float(), torch.cat([rates[..., 1:], rates[..., -1:]], dim=-1).float()
        early, late = before[..., None] * offsets.clamp(max=0), after[..., None] * offsets.clamp(min=0)
        cycles = (centres % 1).float()[..., None] + early + late
        return torch.sin(cycles.flatten(2) * (2 * torch.pi))

    def rates(self, f0: Tensor) -> Tensor:
        """Cycles a sample of each harmonic, (rows, harmonics + 1, frames) float32."""
        orders = torch.arange(1, self.config.harmonics + 2, device=f0.device)[:, None]
        return (f0.detach().float()[:, None] * orders / self.config.sample_rate) % 1

    def merge(self, f0: Tensor, sines: Tensor, noise: Tensor | None) -> Tensor:
        """The excitation (rows, samples) of a pitch (rows, frames), its harmonics and its noise (rows, samples)."""
        config, weight = self.config, self.l_linear.weight[0]
        voiced = (f0.detach() > config.voiced_above).to(weight.dtype).repeat_interleave(config.frame, dim=1)
        merged = torch.einsum("h,bhs->bs", weight * config.amplitude, sines.to(weight.dtype)) * voiced
        if noise is not None:
            spread = voiced * config.noise + (1 - voiced) * (config.amplitude / 3)
            merged = merged + noise.to(weight.dtype) * spread * weight.norm()
        return torch.tanh(merged + self.l_linear.bias)


class SteppedSource(HarmonicSource):
    """CosyVoice3's excitation, which never looks ahead: the phase is that of the frame's end, for the whole frame.

    `noise` is one number from 0 to 1 for each harmonic and sample (rows, harmonics + 1, samples), or None for silence.
    Upstream draws such uniform numbers too, once for all requests when it starts.
    """

    def forward(self, f0: Tensor, noise: Tensor | None) -> Tensor:
        phase = torch.cumsum(self.rates(f0), dim=-1) * 2 * torch.pi * self.config.frame
        return self.merge(f0, phase.sin(), noise)

    def follow(self, f0: Tensor, noise: Tensor | None, phase: Tensor) -> tuple[Tensor, Tensor]:
        """The excitation of frames before which the phase is `phase`, and the phase after them.

        Phases are float64 (rows, harmonics + 1, 1), in cycles; they are summed in float64.
        """
        cycles = (phase + torch.cumsum(self.rates(f0).double() * self.config.frame, dim=-1)) % 1
        return self.merge(f0, torch.sin(cycles.float() * (2 * torch.pi)), noise), cycles[..., -1:]

    def merge(self, f0: Tensor, sines: Tensor, noise: Tensor | None) -> Tensor:
        """As `HarmonicSource.merge`, with `sines` (rows, harmonics + 1, frames)."""
        config, weight = self.config, self.l_linear.weight[0]
        voiced = (f0.detach() > config.voiced_above).to(weight.dtype)
        merged = torch.einsum("h,bhf->bf", weight * config.amplitude, sines.to(weight.dtype)) * voiced
        merged = merged.repeat_interleave(config.frame, dim=1)
        if noise is not None:
            spread = voiced * config.noise + (1 - voiced) * (config.amplitude / 3)
            mixed = torch.einsum("h,bhs->bs", weight, noise.to(weight.dtype))
            merged = merged + mixed * spread.repeat_interleave(config.frame, dim=1)
        return torch.tanh(merged + self.l_linear.bias)
