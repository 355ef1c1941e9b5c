"""Recordings of speech from the bytes of audio files: checked, mixed down, resampled.

Loudness is left as it is, as upstream's library leaves it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from lighttts.errors import InvalidInput

Float32 = npt.NDArray[np.float32]

SPEECH_RATE = 16_000
"""Samples a second that the speech tokenizer and the speaker model take; a recording has at least as many."""
MAX_BYTES = 16 << 20
MIN_SECONDS = 1.0
MAX_SECONDS = 30.0
MAX_RATE = 192_000
SILENCE = 1e-3
"""A recording whose peak, full scale being 1, stays below this (-60 dB) is silent."""
MAX_PEAK = 4.0
"""A peak above this (12 dB over full scale) means samples on another scale."""


@dataclass(frozen=True)
class _Kind:
    """What a recording is for, in the words of its refusals; `too_long` and `too_short` say what to do then."""

    field: str
    noun: str
    too_long: str
    too_short: str

    def refused(self, what: str) -> InvalidInput:
        return InvalidInput(f"The {self.noun} {what}.", field=self.field)


_PROMPT = _Kind("prompt", "prompt audio", "cut it to the clearest 5 to 15 s", "send at least 1 s, better 5 to 15 s")
_SOURCE = _Kind("source", "source audio", "convert it in pieces", "send at least 1 s")


@dataclass(frozen=True, eq=False)
class PromptAudio:
    """One prompt, mono, around [-1, 1]."""

    speech: Float32
    """Samples at `SPEECH_RATE`."""
    wave: Float32
    """The same at the model's sample rate."""


def read_prompt(content: bytes, sample_rate: int) -> PromptAudio:
    """The prompt in an audio file's bytes, of any kind that libsndfile reads (WAV, FLAC, Ogg, MP3, ...).

    `sample_rate` is the model's. Raises `InvalidInput` for what is too large, no audio, below 16 kHz or above 192 kHz,
    neither mono nor stereo, shorter than 1 s or longer than 30 s, silent, or not finite.
    """
    mono, rate = _read(content, _PROMPT)
    return PromptAudio(speech=_resample(mono, rate, SPEECH_RATE), wave=_resample(mono, rate, sample_rate))


def read_source(content: bytes) -> Float32:
    """What is to be converted: samples (n,) at `SPEECH_RATE`, of an audio file as `read_prompt` takes it. Raises
    `InvalidInput`."""
    mono, rate = _read(content, _SOURCE)
    return _resample(mono, rate, SPEECH_RATE)


def _read(content: bytes, kind: _Kind) -> tuple[Float32, int]:
    """Mono samples (n,) and sample rate."""
    if len(content) > MAX_BYTES:
        raise kind.refused(f"has {len(content)} bytes where {MAX_BYTES} are allowed; send FLAC, or a shorter piece")
    samples, rate = _decode(content, kind)
    mono = samples.mean(axis=1, dtype=np.float32)
    _check_level(mono, kind)
    return mono, rate


def _decode(content: bytes, kind: _Kind) -> tuple[Float32, int]:
    """Samples (frames, channels) and sample rate; no more is decoded than an acceptable one can have."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels = file.samplerate, file.channels
            _check_format(rate, channels, kind)
            samples = file.read(int(MAX_SECONDS * rate) + 1, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise kind.refused("cannot be read as audio; send a whole WAV, FLAC, Ogg or MP3 file") from error
    if len(samples) > MAX_SECONDS * rate:
        raise kind.refused(f"is longer than {MAX_SECONDS:.0f} s; {kind.too_long}")
    if len(samples) < MIN_SECONDS * rate:
        raise kind.refused(f"has {len(samples) / rate:.2f} s; {kind.too_short}")
    return samples, rate


def _check_format(rate: int, channels: int, kind: _Kind) -> None:
    if not SPEECH_RATE <= rate <= MAX_RATE:
        raise kind.refused(f"has {rate} samples a second; send a recording of {SPEECH_RATE} to {MAX_RATE}")
    if channels > 2:
        raise kind.refused(f"has {channels} channels; send mono or stereo")


def _check_level(mono: Float32, kind: _Kind) -> None:
    if not np.isfinite(mono).all():
        raise kind.refused("holds samples that are not finite numbers; export it again")
    peak = float(np.abs(mono).max())
    if peak > MAX_PEAK:
        raise kind.refused(f"peaks at {peak:.4g} where full scale is 1; export it with samples within -1 and 1")
    if float(np.abs(mono - mono.mean()).max()) < SILENCE:
        raise kind.refused("is silent; send a recording of somebody who speaks")


def _resample(mono: Float32, rate: int, wanted: int) -> Float32:
    if rate == wanted:
        return mono
    return np.asarray(soxr.resample(mono, rate, wanted), np.float32)
