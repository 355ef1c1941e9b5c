"""Spectral distance between waveforms at several resolutions, the vocoder's reconstruction loss.

Log-mel and log-magnitude L1 at each resolution (Yamamoto et al., arXiv:1910.11480; mel at several resolutions as in
Kumar et al., arXiv:2306.06546).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.features import FLOW_RATE, slaney_filters

SCALES = ((2048, 128), (1024, 80), (512, 40), (256, 20))  # (n_fft, mel bands), hop n_fft / 4
FLOOR = 1e-5
MAGNITUDE_SHARE = 0.25


class SpectralDistance(nn.Module):
    """Mean over resolutions of the log-mel L1 plus a share of the log-magnitude L1: audio [B, N] twice -> scalar."""

    def __init__(self) -> None:
        super().__init__()
        for n_fft, bands in SCALES:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft), persistent=False)
            self.register_buffer(
                f"mel{n_fft}", slaney_filters(FLOW_RATE, n_fft, bands, FLOW_RATE / 2), persistent=False
            )

    def forward(self, ours: Tensor, target: Tensor) -> Tensor:
        terms = []
        both = torch.cat([ours, target])
        for n_fft, _ in SCALES:
            window, filters = self.get_buffer(f"window{n_fft}"), self.get_buffer(f"mel{n_fft}")
            spectrum = torch.view_as_real(torch.stft(both, n_fft, n_fft // 4, window=window, return_complex=True))
            magnitude = torch.sqrt(spectrum.square().sum(-1) + 1e-9)
            mel = torch.log((filters @ magnitude).clamp_min(FLOOR))
            terms += [_difference(mel), MAGNITUDE_SHARE * _difference(torch.log(magnitude))]
        return torch.stack(terms).sum() / len(SCALES)


def _difference(both: Tensor) -> Tensor:
    ours, target = both.chunk(2)
    return (ours - target).abs().mean()
