"""The batched features of training are those of the front end's references."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.features import FLOW_MARGIN, FlowMel, KaldiFbank, Resample, WhisperMel

GOLDEN = load_file(Path(__file__).parents[1] / "golden/frontend/features.safetensors")


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def in_a_batch(audio: torch.Tensor) -> torch.Tensor:
    """The signal as the second row of two, so that a feature that mixes rows would be seen."""
    return torch.stack([torch.linspace(-1, 1, len(audio)), audio])


@pytest.mark.parametrize(("fmax", "name"), [(8000.0, "mel_80_24k_fmax8k"), (12000.0, "mel_80_24k")])
def test_flow_mel_matches_the_reference(fmax: float, name: str) -> None:
    assert relative_error(FlowMel(fmax)(in_a_batch(GOLDEN["wav24k"]))[1], GOLDEN[name][0]) < 1e-4


def test_flow_mel_of_a_crop_with_margin_equals_those_frames_of_the_whole() -> None:
    mel, audio = FlowMel(), GOLDEN["wav24k"][None]
    crop = audio[:, 480 * 20 - FLOW_MARGIN : 480 * 60 + FLOW_MARGIN]
    assert relative_error(mel(crop, with_margin=True), mel(audio)[..., 20:60]) < 1e-4


def test_whisper_mel_matches_the_reference() -> None:
    assert relative_error(WhisperMel()(in_a_batch(GOLDEN["wav16k"]))[1], GOLDEN["whisper_logmel_128"][0]) < 1e-4


def test_kaldi_fbank_matches_the_reference() -> None:
    ours = KaldiFbank()(in_a_batch(GOLDEN["wav16k"]))[1]
    assert relative_error(ours, GOLDEN["kaldi_fbank_80"]) < 1e-3
    assert relative_error(ours - ours.mean(0), GOLDEN["kaldi_fbank_80_meansub"]) < 1e-3


def tone(rate: int, hz: float) -> torch.Tensor:
    return torch.sin(torch.arange(rate, dtype=torch.float64) * (2 * torch.pi * hz / rate)).float()[None]


@pytest.mark.parametrize(("up", "down"), [(2, 3), (3, 2), (11, 10), (23, 25)])
def test_resampling_keeps_a_tone_below_the_new_nyquist(up: int, down: int) -> None:
    rate = 24000 * up // down
    ours, expected = Resample(up, down)(tone(24000, 3000.0)), tone(rate, 3000.0)
    assert ours.shape == expected.shape
    assert (ours - expected)[:, 200:-200].abs().max() < 2e-3


def test_resampling_down_removes_what_the_lower_rate_cannot_hold() -> None:
    assert Resample(2, 3)(tone(24000, 9500.0))[:, 200:-200].abs().max() < 2e-3
