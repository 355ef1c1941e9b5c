"""The flow's trainer: it learns, it resumes where it stopped, and what it writes is a flow the daemons load."""

import argparse
import copy

import pytest
import torch

from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop
from lighttts.models.weights import load_into, load_weights
from training import flow
from training.loop import Plan, export, run
from training.speaker_encoder import SpeakerEncoder


@pytest.fixture
def trainer(store, spec, tmp_path):
    export(tmp_path / "speaker.pt", SpeakerEncoder().state_dict())
    arguments = argparse.Namespace(
        spec=spec, store=store, warped=store, speaker=tmp_path / "speaker.pt", hours=1.0, rows=4, tokens=30
    )
    return flow.build(arguments)


def test_the_loss_falls_on_one_batch(trainer):
    batch = trainer.batch()
    trainer.batch = lambda: batch
    losses = []
    for _ in range(40):
        losses.append(trainer.advance(0.2, 1.0))
    last = torch.stack(losses[-5:]).mean(0)
    assert last[0] < 0.8 * losses[0][0]
    assert last[1] < 0.9 * losses[0][1]


def test_all_weights_get_a_gradient(trainer):
    trainer.step()
    assert [n for n, p in trainer.model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_batch_holds_tokens_mel_and_unit_embeddings_of_both_stores(trainer):
    tokens, mel, voice = trainer.batch()
    assert tokens.shape == (4, 30)
    assert mel.shape == (4, 60, 80)
    assert voice.shape == (4, 192)
    torch.testing.assert_close(voice.norm(dim=1), torch.ones(4), atol=0.1, rtol=0)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(trainer):
    def two_steps():
        torch.manual_seed(1)
        for _ in range(2):
            losses = trainer.advance(0.5, 1.0)
        return losses, {name: weight.clone() for name, weight in trainer.weights().items()}

    trainer.advance(0.5, 1.0)
    saved = copy.deepcopy(trainer.state())
    expected = two_steps()
    trainer.load(saved)
    torch.testing.assert_close(two_steps(), expected)


def test_the_exported_weights_are_a_flow_that_runs(trainer, spec, tmp_path):
    run(trainer, Plan("flow", tmp_path, minutes=0.02))
    model = CausalMaskedDiffWithXvec(flow.read_config(spec))
    load_into(model, load_weights(tmp_path / "flow.pt"), "flow.pt")
    state = model.eval().start(torch.randn(192), torch.zeros(0, 80))
    with torch.inference_mode():
        (result,) = model.advance([FlowHop(state, torch.arange(28) % 50, final=True)])
    assert result.mel.shape == (56, 80)
    assert result.mel.isfinite().all()
    rows = (tmp_path / "flow.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,flow,prior,gradient"


def test_weights_that_shipped_are_a_beginning(trainer):
    weights = {name: torch.full_like(weight, 0.25) for name, weight in trainer.weights().items()}
    trainer.start_from(weights)
    torch.testing.assert_close(dict(trainer.model.state_dict()), weights)
    torch.testing.assert_close(trainer.weights(), weights)
