"""Prompt features equal the reference implementation's and have the shapes that the models are given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.frontend.features import MelSpec, flow_mel, kaldi_fbank, speaker_features, whisper_log_mel

COSYVOICE2 = MelSpec(sample_rate=24000, n_fft=1920, hop=480, bins=80, fmin=0.0, fmax=8000.0)
COSYVOICE3 = MelSpec(sample_rate=24000, n_fft=1920, hop=480, bins=80, fmin=0.0, fmax=None)


def assert_matches(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()


def test_whisper_log_mel_equals_the_reference(reference):
    assert_matches(whisper_log_mel(reference["wav16k"]), reference["whisper_logmel_128"][0])


def test_kaldi_fbank_equals_the_reference(reference):
    assert_matches(kaldi_fbank(reference["wav16k"]), reference["kaldi_fbank_80"])


def test_speaker_features_are_the_fbank_with_each_bin_centred(reference):
    assert_matches(speaker_features(reference["wav16k"]), reference["kaldi_fbank_80_meansub"])


@pytest.mark.parametrize(("spec", "name"), [(COSYVOICE2, "mel_80_24k_fmax8k"), (COSYVOICE3, "mel_80_24k")])
def test_flow_mel_equals_the_reference(reference, spec, name):
    assert_matches(flow_mel(reference["wav24k"], spec), reference[name][0].T)


@settings(deadline=None, max_examples=25)
@given(st.integers(1200, 40_000), st.integers(0, 2**32 - 1))
def test_any_signal_gives_finite_features_of_the_stated_shape(samples, seed):
    wave = np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)
    expected = {
        (128, samples // 160): whisper_log_mel(wave),
        (1 + (samples - 400) // 160, 80): speaker_features(wave),
        (samples // 480, 80): flow_mel(wave, COSYVOICE2),
    }
    for shape, features in expected.items():
        assert features.shape == shape
        assert np.isfinite(features).all()


def test_digital_silence_gives_finite_features():
    silence = np.zeros(16000, np.float32)
    for features in (whisper_log_mel(silence), kaldi_fbank(silence), flow_mel(silence, COSYVOICE3)):
        assert np.isfinite(features).all()


def test_a_tone_is_loudest_in_the_bin_of_its_frequency():
    times = np.arange(24000) / 24000
    low, high = (flow_mel(np.sin(2 * np.pi * hz * times), COSYVOICE3).mean(axis=0).argmax() for hz in (300.0, 6000.0))
    assert low < 15
    assert high > 60
