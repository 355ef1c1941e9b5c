"""Spectral features of a prompt, in numpy: what the speech tokenizer, the speaker model and the flow take.

All are functions of a mono signal of samples around [-1, 1]. Computation is in float64, results are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

WHISPER_BINS = 128
_WHISPER_WINDOW = 400
_WHISPER_HOP = 160

KALDI_BINS = 80
_KALDI_WINDOW = 400
_KALDI_HOP = 160
_KALDI_FFT = 512
_KALDI_LOW_HZ = 20.0
_FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class MelSpec:
    """Parameters of the flow's mel spectrogram. `fmax` None means up to half the sample rate."""

    sample_rate: int
    n_fft: int
    hop: int
    bins: int
    fmin: float
    fmax: float | None


def whisper_log_mel(wave: npt.ArrayLike) -> Float32:
    """Whisper's log-mel spectrogram: (samples,) at 16 kHz, more than 200 -> (128, samples // 160) float32.

    As `log_mel_spectrogram` of openai/whisper: 25 ms Hann window, 10 ms hop, centred frames, the last one dropped;
    log10 of the power, floored 8 below the loudest value, scaled by (x + 4) / 4.
    """
    padded = np.pad(np.asarray(wave, np.float64), _WHISPER_WINDOW // 2, mode="reflect")
    power = _power(_frames(padded, _WHISPER_WINDOW, _WHISPER_HOP)[:-1] * _hann(_WHISPER_WINDOW), _WHISPER_WINDOW)
    mel = power @ _slaney_filters(16000, _WHISPER_WINDOW, WHISPER_BINS, 0.0, 8000.0)
    log = np.log10(np.maximum(mel, 1e-10)).T
    return np.ascontiguousarray((np.maximum(log, log.max() - 8.0) + 4.0) / 4.0, np.float32)


def kaldi_fbank(wave: npt.ArrayLike) -> Float32:
    """Kaldi's log filter bank: (samples,) at 16 kHz, at least 400 -> (1 + (samples - 400) // 160, 80) float32.

    As `compute-fbank-feats` of Kaldi with dither 0 and samples in [-1, 1]: 25 ms frames every 10 ms inside the signal,
    mean removed, pre-emphasis 0.97, Povey window, power spectrum of 512 points, 80 mel triangles from 20 Hz to 8 kHz.
    """
    frames = _frames(np.asarray(wave, np.float64), _KALDI_WINDOW, _KALDI_HOP)
    frames = frames - frames.mean(axis=1, keepdims=True)
    previous = np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    power = _power((frames - 0.97 * previous) * _povey(_KALDI_WINDOW), _KALDI_FFT)
    return np.log(np.maximum(power @ _kaldi_filters(), _FLOAT32_EPSILON)).astype(np.float32)


def speaker_features(wave: npt.ArrayLike) -> Float32:
    """What the speaker model takes: `kaldi_fbank` less each bin's mean over time, (frames, 80) float32."""
    bank = kaldi_fbank(wave)
    bank -= bank.mean(axis=0, keepdims=True)
    return bank


def flow_mel(wave: npt.ArrayLike, spec: MelSpec) -> Float32:
    """The flow's log-mel: (samples,), more than (n_fft - hop) / 2 -> (samples // hop, bins) float32.

    As `mel_spectrogram` of HiFi-GAN (jik876/hifi-gan, meldataset.py): frame i is centred on hop i + 1/2; natural log
    of the mel-weighted magnitude, floored at 1e-5. `wave` is at `spec.sample_rate`.
    """
    padded = np.pad(np.asarray(wave, np.float64), (spec.n_fft - spec.hop) // 2, mode="reflect")
    power = _power(_frames(padded, spec.n_fft, spec.hop) * _hann(spec.n_fft), spec.n_fft)
    top = spec.sample_rate / 2 if spec.fmax is None else spec.fmax
    mel = np.sqrt(power + 1e-9) @ _slaney_filters(spec.sample_rate, spec.n_fft, spec.bins, spec.fmin, top)
    return np.log(np.maximum(mel, 1e-5)).astype(np.float32)


def _frames(signal: Float64, size: int, hop: int) -> Float64:
    """Overlapping views of `signal`: (frames, size), only frames that lie wholly inside it."""
    return np.lib.stride_tricks.sliding_window_view(signal, size)[::hop]


def _power(frames: Float64, n_fft: int) -> Float64:
    """Power spectrum of each windowed frame: (frames, n_fft // 2 + 1)."""
    spectrum = np.fft.rfft(frames, n_fft, axis=1)
    return np.square(spectrum.real) + np.square(spectrum.imag)


@lru_cache(maxsize=8)
def _hann(size: int) -> Float64:
    """Periodic Hann window, as spectral analysis uses it."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@lru_cache(maxsize=1)
def _povey(size: int) -> Float64:
    """Kaldi's default window: a symmetric Hann window to the power of 0.85."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))
    return np.power(hann, 0.85)


@lru_cache(maxsize=8)
def _slaney_filters(sample_rate: int, n_fft: int, bins: int, low: float, high: float) -> Float64:
    """Triangles of equal area on Slaney's mel scale (Auditory Toolbox; librosa's default): (n_fft // 2 + 1, bins)."""
    edges = _slaney_to_hz(np.linspace(_slaney_mel(low), _slaney_mel(high), bins + 2))
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    return _triangles(frequencies, edges) * (2.0 / (edges[2:] - edges[:-2]))


@lru_cache(maxsize=1)
def _kaldi_filters() -> Float64:
    """Triangles of height 1 on the scale 1127 ln(1 + f / 700), straight in mel rather than in Hz: (257, 80).

    Kaldi computes them in single precision, which shows in the weights at the feet of narrow triangles.
    """
    low, high = _kaldi_mel(np.array([_KALDI_LOW_HZ, 8000.0])).astype(np.float32)
    edges = low + np.arange(KALDI_BINS + 2, dtype=np.float32) * ((high - low) / np.float32(KALDI_BINS + 1))
    bins = np.arange(_KALDI_FFT // 2 + 1, dtype=np.float32) * np.float32(16000 / _KALDI_FFT)
    filters = _triangles(_kaldi_mel(bins), edges)
    filters[-1] = 0.0  # Kaldi leaves the bin at half the sample rate out
    return filters.astype(np.float64)


def _triangles(positions: Floats, edges: Floats) -> Floats:
    """Weights (positions, len(edges) - 2): filter i rises over edges i to i + 1 and falls to edge i + 2."""
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (positions[:, None] - low) / (centre - low)
    falling = (high - positions[:, None]) / (high - centre)
    weights: Floats = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def _kaldi_mel(hz: Floats) -> Floats:
    mel: Floats = 1127.0 * np.log(1.0 + hz / 700.0)
    return mel


# Slaney's scale is linear (3 mel per 200 Hz) below 1 kHz = 15 mel and logarithmic above: 27 mel for a factor of 6.4.
_MEL_PER_LOG = 27.0 / np.log(6.4)


def _slaney_mel(hz: float) -> float:
    return float(hz * 0.015 if hz < 1000.0 else 15.0 + _MEL_PER_LOG * np.log(hz / 1000.0))


def _slaney_to_hz(mel: Float64) -> Float64:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) / _MEL_PER_LOG))
