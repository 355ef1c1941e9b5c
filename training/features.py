"""The front end's audio features as batched torch code, for training on the GPU.

Three features with the definitions the models were published with:

- `FlowMel`: the flow's and vocoder's log-mel, 24 kHz, n_fft 1920, hop 480, 80 Slaney bands (Matcha-TTS, HiFi-GAN),
- `WhisperMel`: the speech tokenizer's log-mel, 16 kHz, n_fft 400, hop 160, 128 Slaney bands (Radford et al. 2022),
- `KaldiFbank`: the speaker encoder's log filter bank, 16 kHz, 80 HTK bands, Povey window (`compute-fbank-feats`).

Audio is float32 in [-1, 1], one utterance a row. All are `nn.Module`s with buffers only and without device-to-host
copies, so they can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOW_RATE = 24000
FLOW_HOP = 480
FLOW_FFT = 1920
FLOW_MARGIN = (FLOW_FFT - FLOW_HOP) // 2  # context a frame needs on each side of its own 480 samples
FRAMES_PER_TOKEN = 2
SAMPLES_PER_TOKEN = FLOW_HOP * FRAMES_PER_TOKEN
WHISPER_RATE = 16000


def _hz_to_slaney(hz: Tensor) -> Tensor:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    linear = hz * 3.0 / 200.0
    return torch.where(hz >= 1000.0, 15.0 + torch.log(hz.clamp_min(1e-9) / 1000.0) * (27.0 / math.log(6.4)), linear)


def _slaney_to_hz(mel: Tensor) -> Tensor:
    linear = mel * 200.0 / 3.0
    return torch.where(mel >= 15.0, 1000.0 * torch.exp((mel - 15.0) * (math.log(6.4) / 27.0)), linear)


def slaney_filters(rate: int, n_fft: int, bands: int, fmax: float) -> Tensor:
    """Triangular filters of unit area on Slaney's mel scale from 0 Hz to `fmax`: [bands, n_fft // 2 + 1] float32."""
    bins = torch.linspace(0.0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    top = float(_hz_to_slaney(torch.tensor(fmax, dtype=torch.float64)))
    edges = _slaney_to_hz(torch.linspace(0.0, top, bands + 2, dtype=torch.float64))
    width = edges.diff()
    rise = (bins - edges[:-2, None]) / width[:-1, None]
    fall = (edges[2:, None] - bins) / width[1:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (torch.minimum(rise, fall).clamp_min(0.0) * area[:, None]).float()


def kaldi_filters(rate: int, n_fft: int, bands: int, fmin: float) -> Tensor:
    """Kaldi's triangular filters, linear in 1127 ln(1 + f/700), `fmin` to Nyquist: [bands, n_fft // 2 + 1]."""
    bins = 1127.0 * torch.log1p(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft / 700.0)
    low, high = (1127.0 * math.log1p(f / 700.0) for f in (fmin, rate / 2))
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    step = (high - low) / (bands + 1)
    rise, fall = (bins - edges[:-2, None]) / step, (edges[2:, None] - bins) / step
    filters = torch.minimum(rise, fall).clamp_min(0.0).float()
    filters[:, -1] = 0.0  # Kaldi leaves the Nyquist bin out
    return filters


class FlowMel(nn.Module):
    """Natural log-mel of 24 kHz audio, 50 frames a second; frame i is centred on samples [480i, 480i + 480)."""

    filters: Tensor
    window: Tensor

    def __init__(self, fmax: float = 8000.0, bands: int = 80) -> None:
        super().__init__()
        self.register_buffer("filters", slaney_filters(FLOW_RATE, FLOW_FFT, bands, fmax), persistent=False)
        self.register_buffer("window", torch.hann_window(FLOW_FFT), persistent=False)

    def forward(self, audio: Tensor, *, with_margin: bool = False) -> Tensor:
        """[B, N] float32 -> [B, bands, N // 480] float32.

        `with_margin`: the audio holds 720 samples of context on each side, which yield no frames of their own; without
        it the audio is reflected at both ends, as the front end does with whole utterances.
        """
        if not with_margin:
            audio = F.pad(audio[:, None], (FLOW_MARGIN, FLOW_MARGIN), mode="reflect")[:, 0]
        spectrum = torch.stft(audio, FLOW_FFT, FLOW_HOP, window=self.window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return torch.log((self.filters @ torch.sqrt(power + 1e-9)).clamp_min(1e-5))


class WhisperMel(nn.Module):
    """Whisper's log-mel of 16 kHz audio: 100 a second, down to 80 dB below the row's maximum, about [-1, 1]."""

    filters: Tensor
    window: Tensor

    def __init__(self, bands: int = 128) -> None:
        super().__init__()
        self.register_buffer("filters", slaney_filters(WHISPER_RATE, 400, bands, WHISPER_RATE / 2), persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] float32 -> [B, bands, N // 160] float32. Rows may be padded with zeros: each has its own maximum."""
        spectrum = torch.stft(audio, 400, 160, window=self.window, center=True, return_complex=True)[..., :-1]
        power = torch.view_as_real(spectrum).square().sum(-1)
        level = torch.log10((self.filters @ power).clamp_min(1e-10))
        return (torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class KaldiFbank(nn.Module):
    """Kaldi's log filter bank of 16 kHz audio, no dither: 25 ms windows every 10 ms, where a whole window fits."""

    filters: Tensor
    window: Tensor

    def __init__(self, bands: int = 80) -> None:
        super().__init__()
        self.register_buffer("filters", kaldi_filters(WHISPER_RATE, 512, bands, 20.0), persistent=False)
        self.register_buffer("window", torch.hann_window(400, periodic=False).pow(0.85), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] float32 -> [B, (N - 240) // 160, bands] float32; the speaker encoder wants a row's mean taken off."""
        frames = audio.unfold(1, 400, 160)
        frames = frames - frames.mean(-1, keepdim=True)
        emphasised = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.view_as_real(torch.fft.rfft(emphasised * self.window, 512)).square().sum(-1)
        return torch.log((spectrum @ self.filters.T).clamp_min(torch.finfo(torch.float32).eps))


class Resample(nn.Module):
    """Band-limited resampling by `up` / `down` (small integers): Hann-windowed sinc, one filter an output phase."""

    kernel: Tensor

    def __init__(self, up: int, down: int, rolloff: float = 0.96) -> None:
        super().__init__()
        common = math.gcd(up, down)
        self.up, self.down = up // common, down // common
        cutoff = rolloff * min(1.0, self.up / self.down) / 2
        self.reach = math.ceil(8 / cutoff)
        taps = torch.arange(-self.reach, self.reach + self.down + 1, dtype=torch.float64)
        phase = torch.arange(self.up, dtype=torch.float64) * self.down / self.up
        distance = taps[None] - phase[:, None]
        window = torch.cos(distance * math.pi / (2 * self.reach)).square() * (distance.abs() < self.reach)
        kernel = torch.sinc(2 * cutoff * distance) * 2 * cutoff * window
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] float32 -> [B, N * up // down] float32."""
        length = audio.shape[1] * self.up // self.down
        padded = F.pad(audio[:, None], (self.reach, self.reach + self.down))
        phases = F.conv1d(padded, self.kernel, stride=self.down)
        return phases.transpose(1, 2).flatten(1)[:, :length]
