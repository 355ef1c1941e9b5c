"""Prompt audio of any usual kind is taken; whatever is no usable prompt is refused with what to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.errors import InvalidInput
from lighttts.frontend.audio import MAX_BYTES, PromptAudio, read_prompt, read_source


def tone(seconds: float, rate: int, hz: float = 1000.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def main_frequency(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_any_usual_file_is_resampled_to_both_rates(audio_file, kind, subtype, rate):
    audio = read_prompt(audio_file(tone(1.5, rate), rate, kind, subtype), 24000)
    for samples, wanted in ((audio.speech, 16000), (audio.wave, 24000)):
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert abs(len(samples) / wanted - 1.5) < 0.1  # MP3 adds up to 0.1 s of padding
        assert abs(main_frequency(samples, wanted) - 1000) < 2
        assert 0.4 < np.abs(samples).max() < 0.6


def test_stereo_is_mixed_down(audio_file):
    left = tone(1.0, 24000)
    audio = read_prompt(audio_file(np.stack([left, np.zeros_like(left)], axis=1), 24000, subtype="FLOAT"), 24000)
    np.testing.assert_allclose(audio.wave, left / 2, atol=1e-6)


def test_samples_at_the_models_rate_are_left_as_they_are(audio_file):
    samples = tone(1.0, 24000, level=0.01).astype(np.float32)
    np.testing.assert_array_equal(read_prompt(audio_file(samples, 24000, subtype="FLOAT"), 24000).wave, samples)


@pytest.mark.parametrize(
    ("samples", "rate", "subtype", "reason"),
    [
        (tone(2, 8000), 8000, "PCM_16", "8000 samples a second; send a recording of 16000"),
        (tone(1, 200_000), 200_000, "PCM_16", "200000 samples a second"),
        (tone(30.01, 16000), 16000, "PCM_16", "longer than 30 s; cut it"),
        (tone(0.99, 16000), 16000, "PCM_16", "0.99 s; send at least 1 s"),
        (np.zeros(0), 16000, "PCM_16", "0.00 s"),
        (np.zeros(32000), 16000, "PCM_16", "silent"),
        (np.full(32000, 0.3), 16000, "PCM_16", "silent"),
        (tone(2, 16000)[:, None] * [1, -1], 16000, "FLOAT", "silent"),
        (tone(2, 16000)[:, None] * [1, 1, 1], 16000, "PCM_16", "3 channels; send mono or stereo"),
        (np.where(np.arange(32000) == 9, np.nan, 0.5), 16000, "FLOAT", "not finite"),
        (tone(2, 16000, level=20000.0), 16000, "FLOAT", "peaks at 2e.04 where full scale is 1"),
    ],
    ids=[
        "8 kHz",
        "200 kHz",
        "long",
        "short",
        "no samples",
        "zeros",
        "constant",
        "cancelling",
        "surround",
        "nan",
        "scale",
    ],
)
def test_what_is_no_usable_prompt_is_refused(audio_file, samples, rate, subtype, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_prompt(audio_file(samples, rate, subtype=subtype), 24000)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(30.01, "The source audio is longer than 30 s; convert it in pieces"), (0.99, "source audio has 0.99 s; send at")],
)
def test_a_source_has_the_limits_of_a_prompt_and_its_own_words_for_them(audio_file, seconds, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_source(audio_file(tone(seconds, 16000), 16000))
    assert caught.value.field == "source"


def test_a_source_is_read_as_a_prompts_speech_is(audio_file):
    content = audio_file(tone(30.0, 24000), 24000)
    np.testing.assert_array_equal(read_source(content), read_prompt(content, 24000).speech)


@pytest.mark.parametrize("content", [b"", b"hello", b"RIFF", b"\x00" * 1000, b"OggS" + bytes(100), b"fLaC"])
def test_what_is_no_audio_is_refused(content):
    with pytest.raises(InvalidInput, match="cannot be read as audio; send a whole WAV"):
        read_prompt(content, 24000)


def test_a_cut_off_file_is_refused_or_read_as_far_as_it_goes(audio_file):
    whole = audio_file(tone(2.0, 24000), 24000)
    assert len(read_prompt(whole[: len(whole) * 3 // 4], 24000).wave) == pytest.approx(36000, abs=20)
    with pytest.raises(InvalidInput, match="send at least 1 s"):
        read_prompt(whole[: len(whole) // 4], 24000)


def test_a_file_over_the_byte_limit_is_refused_unread():
    with pytest.raises(InvalidInput, match=f"{MAX_BYTES + 1} bytes where {MAX_BYTES} are allowed"):
        read_prompt(bytes(MAX_BYTES + 1), 24000)


def test_a_small_file_of_hours_is_refused_without_decoding_it_all(audio_file):
    hour = audio_file(np.zeros(3600 * 16000, np.float32), 16000, "FLAC", "PCM_16")
    assert len(hour) < 1 << 20
    with pytest.raises(InvalidInput, match="longer than 30 s"):
        read_prompt(hour, 24000)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")]),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_is_refused_or_gives_finite_samples(audio_file, kind, changes):
    content = bytearray(audio_file(tone(1.2, 16000), 16000, *kind))
    for at, value in changes:
        content[at] = value
    try:
        audio = read_prompt(bytes(content), 24000)
    except InvalidInput:
        return
    assert isinstance(audio, PromptAudio)
    assert np.isfinite(audio.speech).all()
    assert np.isfinite(audio.wave).all()
