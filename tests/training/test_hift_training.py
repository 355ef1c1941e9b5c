"""The vocoder's trainer: both its stages learn, it resumes where it stopped, and what it writes is a vocoder."""

import argparse
import copy

import pytest
import torch

from lighttts.models.hift import HiFTGenerator
from lighttts.models.stft import FourierFrames
from lighttts.models.weights import load_into, load_weights
from training import discriminators, hift
from training.loop import Plan, run


@pytest.fixture
def trainer(store, spec, monkeypatch):
    monkeypatch.setattr(discriminators, "PERIODS", (2, 3))
    monkeypatch.setattr(discriminators, "PERIOD_CHANNELS", (4, 8))
    monkeypatch.setattr(discriminators, "RESOLUTIONS", (512,))
    monkeypatch.setattr(discriminators, "SPECTRUM_CHANNELS", 4)
    return hift.build(argparse.Namespace(spec=spec, store=store, hours=0.01, rows=2, frames=12))


def on_one_batch(trainer):
    """Make every step see the same crops."""
    batch = trainer.speech.crops(trainer.rows, trainer.frames)
    trainer.speech.crops = lambda rows, frames: batch
    return trainer


def test_the_matrix_fourier_synthesis_is_the_models_own():
    spectra = torch.randn(2, 18, 49)
    torch.testing.assert_close(hift.MatrixFourier(16, 4).synthesise(spectra), FourierFrames(16, 4).synthesise(spectra))


def test_spectral_and_pitch_losses_fall_before_the_adversary_comes(trainer):
    on_one_batch(trainer)
    losses = []
    for _ in range(25):
        losses.append(trainer.advance(0.05, 1.0))
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]


def test_the_adversarial_stage_trains_both_networks(trainer):
    on_one_batch(trainer)
    losses = []
    for _ in range(4):
        losses.append(trainer.advance(0.5, 1.0))
    assert losses[-1][4] < losses[0][4]
    without = [n for net in (trainer.model, trainer.judges) for n, p in net.named_parameters() if p.grad is None]
    assert without == []


def test_the_discriminators_loss_does_not_move_the_generator(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "_update_generator", lambda loss: torch.zeros(()))
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.advance(0.5, 1.0)
    assert all(p.grad is None for p in trainer.model.parameters())
    torch.testing.assert_close(list(trainer.model.parameters()), before)


def test_the_teachers_pitch_drives_the_source_only_at_first(trainer):
    trainer.schedule(0.0, 1.0)
    assert trainer.teacher_pitch
    trainer.schedule(0.5, 1.0)
    assert not trainer.teacher_pitch


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(trainer):
    def step():
        torch.manual_seed(1)
        losses = trainer.advance(0.5, 1.0)
        return losses, {name: weight.clone() for name, weight in trainer.weights().items()}

    trainer.advance(0.5, 1.0)
    saved = copy.deepcopy(trainer.state())
    expected = step()
    trainer.load(saved)
    torch.testing.assert_close(step(), expected)


def test_weights_that_shipped_meet_the_discriminators_at_once(trainer):
    weights = {name: weight.clone() for name, weight in trainer.weights().items()}
    trainer.start_from(weights)
    torch.testing.assert_close(trainer.weights(), weights)
    adversarial = trainer.advance(0.0, 1.0)[3]
    assert adversarial > 0
    assert not trainer.teacher_pitch


def test_the_exported_weights_are_a_vocoder_that_runs(trainer, spec, tmp_path):
    run(trainer, Plan("hift", tmp_path, minutes=0.03))
    model = HiFTGenerator(hift.read_config(spec))
    load_into(model, load_weights(tmp_path / "hift.pt"), "hift.pt")
    with torch.inference_mode():
        audio, pitch = model.eval()(torch.randn(1, 20, 80) - 4, torch.randn(1, 20 * 480))
    assert audio.shape == (1, 20 * 480)
    assert pitch.shape == (1, 20)
    assert audio.isfinite().all()
    assert (tmp_path / "hift.csv").read_text().startswith("step,seconds,spectral,pitch")
