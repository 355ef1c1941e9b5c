"""The speaker encoder: trained to tell voices apart, and shipped as a graph that computes what was trained."""

import copy

import onnxruntime
import pytest
import torch

from training import speaker
from training.loop import export
from training.speaker_encoder import load_speaker
from training.speaker_onnx import write_onnx
from training.warp import warp

CPU = torch.device("cpu")


@pytest.fixture
def trainer(store):
    return speaker.Trainer(speaker.Speakers(store, store, 0.2, CPU), CPU)


def test_the_onnx_graph_computes_the_trained_network_for_any_length_and_batch(trainer, tmp_path):
    for _ in range(3):
        trainer.advance(0.5, 1.0)
    export(tmp_path / "speaker.pt", trainer.weights())
    encoder = load_speaker(tmp_path / "speaker.pt")
    write_onnx(encoder, tmp_path / "campplus.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "campplus.onnx")
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    for rows, frames in ((1, 308), (3, 40)):
        fbank = torch.randn(rows, frames, 80)
        (ours,) = session.run(None, {"input": fbank.numpy()})
        with torch.no_grad():
            expected = encoder(fbank)
        # Half precision weights leave three digits.
        assert (torch.from_numpy(ours) - expected).abs().max() < 5e-3 * expected.std()


def test_speakers_are_told_apart_better_and_better(trainer):
    losses = torch.stack([trainer.advance(0.2, 1.0) for _ in range(12)])[:, 0]
    assert losses[-3:].mean() < losses[:3].mean()


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(trainer):
    def step():
        torch.manual_seed(1)
        return trainer.advance(0.5, 1.0), {name: weight.clone() for name, weight in trainer.weights().items()}

    trainer.advance(0.5, 1.0)
    saved = copy.deepcopy(trainer.state())
    expected = step()
    trainer.load(saved)
    torch.testing.assert_close(step(), expected)


def test_the_margin_makes_the_right_class_harder():
    embedding, classes = torch.randn(4, 192), torch.randn(3, 192)
    label = torch.tensor([0, 1, 2, 0])
    cosine = torch.nn.functional.cosine_similarity(embedding[:, None], classes[None], dim=2)
    plain = torch.nn.functional.cross_entropy(speaker.SCALE * cosine, label)
    assert speaker.margin_loss(embedding, classes, label) > plain


def harmonics(hz: float, seconds: float = 1.0) -> torch.Tensor:
    t = torch.arange(int(24000 * seconds), dtype=torch.float64) / 24000
    return sum(torch.sin(2 * torch.pi * hz * k * t) / k for k in range(1, 20)).float() * 0.1


def test_a_warp_moves_pitch_and_duration_by_its_factor():
    warped = warp(harmonics(200.0), 0.875, 1.0)
    assert abs(len(warped) - 24000 / 0.875) <= 1
    spectrum = torch.fft.rfft(warped[:24000]).abs()
    assert abs(int(spectrum[100:300].argmax()) + 100 - 175) <= 1


def test_a_warp_without_change_returns_the_audio():
    audio = harmonics(150.0)
    torch.testing.assert_close(warp(audio, 1.0, 1.0), audio, atol=5e-3, rtol=0)
