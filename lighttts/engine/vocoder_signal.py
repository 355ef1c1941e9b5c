"""What surrounds the vocoder's convolutions, in plain torch, for rows of different lengths padded to one.

Excitation, its short-time spectra, and audio from spectra: as `lighttts.models.source` and `lighttts.models.stft` have
them, but each row ends at its own true end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.models.hift_layers import MAX_MAGNITUDE
from lighttts.models.rng import Stream, normal
from lighttts.models.source import HarmonicSource
from lighttts.models.stft import FourierFrames


def held_pitch(f0: Tensor, frames: Tensor) -> Tensor:
    """`f0` (rows, frames) with what follows each row's end replaced by its last true one."""
    at = torch.arange(f0.size(1), device=f0.device)
    return f0.gather(1, torch.minimum(at, (frames - 1).clamp(min=0)[:, None]))


def phases(
    source: HarmonicSource, rates: Tensor, start: Tensor, onset: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Cycles at the frames' centres (rows, harmonics + 1, frames) float64, and at each row's end, modulo 1.

    `rates` float64 as the centres; `start` (rows, harmonics + 1): cycles at the start of frame `onset` (rows,).
    """
    frame = source.config.frame
    sums = torch.cumsum(rates * frame, dim=-1)
    centres = sums + (start[..., None] - (at_frame(sums, onset) - at_frame(rates, onset) * (frame / 2)))
    last = (frames - 1).clamp(min=0)
    return centres, ((at_frame(centres, last) + at_frame(rates, last) * (frame / 2)) % 1)[..., 0]


def at_frame(x: Tensor, index: Tensor) -> Tensor:
    """(rows, channels, 1) of `x` (rows, channels, frames) at frame `index` (rows,)."""
    return x.gather(2, index[:, None, None].expand(-1, x.size(1), 1))


def excite(source: HarmonicSource, f0: Tensor, rates: Tensor, centres: Tensor, seed: Tensor, first: Tensor) -> Tensor:
    """Excitation (rows, samples). Noise is that of `seed` (rows,), numbered from frame `first` (rows,)."""
    frame = source.config.frame
    samples = first[:, None] * frame + torch.arange(f0.size(1) * frame, device=f0.device)
    return source.merge(f0, source.sines(rates, centres), normal(seed[:, None], samples, Stream.VOCODER_NOISE))


def analyse(fourier: FourierFrames, signal: Tensor, ends: Tensor) -> Tensor:
    """Spectra (rows, samples / hop + 1, size + 2) of `signal` (rows, samples), each mirrored at its end (rows,)."""
    half = fourier.size // 2
    at = (torch.arange(signal.size(1) + 2 * half, device=signal.device) - half).abs()
    last = ends[:, None] - 1
    mirrored = torch.where(at > last, 2 * last - at, at).clamp(min=0)
    spectra = F.conv1d(signal.gather(1, mirrored)[:, None], fourier.analysis, stride=fourier.hop).transpose(1, 2)
    exists = torch.arange(spectra.size(1), device=signal.device) <= ends[:, None] // fourier.hop
    return spectra.where(exists[..., None], 0.0)


def synthesise(fourier: FourierFrames, layer: Tensor, ends: Tensor, limit: float) -> Tensor:
    """Audio (rows, samples) from the last layer (rows, samples / hop + 1, size + 2): log magnitudes, then phases."""
    exists = (torch.arange(layer.size(1), device=layer.device) <= ends[:, None] // fourier.hop)[:, None]
    log_magnitude, angle = layer.transpose(1, 2).where(exists, -torch.inf).chunk(2, dim=1)
    magnitude, phase = log_magnitude.exp().clamp(max=MAX_MAGNITUDE), torch.sin(angle.where(exists, 0.0))
    spectra = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
    half = fourier.size // 2
    added = F.conv_transpose1d(spectra, fourier.synthesis, stride=fourier.hop)[:, 0, half:-half]
    windows = F.conv_transpose1d(exists.to(layer.dtype), fourier.energy, stride=fourier.hop)[:, 0, half:-half]
    # Where no window reaches, beyond the end, nothing was added either.
    return (added / windows.clamp(min=1e-8)).clamp(-limit, limit)
