"""The language model's trainer: fed from a growing store, it learns, resumes, and writes what is served."""

import argparse
import copy

import numpy as np
import pytest
import torch

from training.corpus import Corpus
from training.feeding import Feeder, Library, Recipe
from training.llm import Shape, SpeechLM
from training.loop import Plan, export, run
from training.packing import Layout
from training.store import Store
from training.train_llm import build, corrupt

CPU = torch.device("cpu")
LAYOUT = Layout(text=40, speech=50)
SHAPE = Shape(hidden=32, layers=2, heads=2, kv_heads=1, inner=48, dropout=0.0, guided=(1,))
TEXT = 6  # text tokens a sentence


@pytest.fixture
def corpus() -> Corpus:
    """Twenty sentences of one phoneme, as the store of tones has them, with some text tokens each."""
    rng = np.random.default_rng(0)
    text = tuple(rng.integers(0, 40, 20 * TEXT).astype(np.uint16) for _ in range(2))
    place = np.tile(np.arange(TEXT, dtype=np.float32) / TEXT, 20)
    counts = np.full(20, TEXT)
    return Corpus(np.zeros(20, np.uint8), np.ones(20, np.int64), text, (place, place), (counts, counts), 1, 1)


@pytest.fixture
def trainer(store, corpus, tmp_path):
    corpus.save(tmp_path / "corpus.npz")
    arguments = argparse.Namespace(corpus=tmp_path, store=store, measured=store, rows=2, length=200, least=1)
    return build(arguments, LAYOUT, SHAPE)


def test_the_loss_falls_and_the_text_spoken_is_found(trainer):
    losses = torch.stack([trainer.advance(0.2, 1.0) for _ in range(60)])
    assert losses[-5:, 0].mean() < losses[:5, 0].mean()
    assert losses[-5:, 2].mean() > losses[:5, 2].mean()


def test_before_its_first_step_a_trainer_has_not_moved(trainer):
    assert trainer.steps == 0
    assert not any(tensor.any() for state in trainer.optimizer.state.values() for tensor in state.values())


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(trainer):
    batch = {name: tensor.clone() for name, tensor in trainer.batch.items()}
    trainer.feeder.fill = lambda into: [into[name].copy_(batch[name]) for name in into]

    def step():
        torch.manual_seed(1)
        return trainer.advance(0.5, 1.0), {name: weight.clone() for name, weight in trainer.weights().items()}

    trainer.advance(0.5, 1.0)
    saved = copy.deepcopy(trainer.state())
    expected = step()
    trainer.load(saved)
    torch.testing.assert_close(step(), expected)


def test_shipped_weights_are_a_beginning(trainer, tmp_path):
    run(trainer, Plan("llm", tmp_path, minutes=0.005))
    weights = torch.load(tmp_path / "llm.pt", weights_only=True)
    other = SpeechLM(LAYOUT, SHAPE)
    other.take({name: weight.float() for name, weight in weights.items()})
    export(tmp_path / "again.pt", other.published())
    torch.testing.assert_close(torch.load(tmp_path / "again.pt", weights_only=True), weights)


def test_sentences_not_trained_on_are_measured(trainer):
    loss, guided = trainer.held_out(trainer.measured).tolist()
    assert 0 < loss < 10
    assert 0 <= guided <= 1
    assert trainer.model.training


def test_only_speech_inputs_are_corrupted():
    ids = torch.cat([torch.arange(LAYOUT.first_speech), torch.full((5000,), LAYOUT.first_speech)])[None]
    wrong = corrupt(ids, LAYOUT, 0.1)
    assert (wrong[:, : LAYOUT.first_speech] == ids[:, : LAYOUT.first_speech]).all()
    spoken = wrong[:, LAYOUT.first_speech :]
    assert spoken.min() >= LAYOUT.first_speech
    assert spoken.max() < LAYOUT.first_speech + LAYOUT.speech


def test_a_library_grows_with_its_store(store, corpus):
    late = store / "tokens-001.npz"
    kept = late.read_bytes()
    late.unlink()
    library = Library(corpus, store)
    assert len(library.refresh()) == len(Store.open(store, ["000"]))
    assert library.refresh(least=6) is None
    late.write_bytes(kept)
    assert len(library.refresh(least=6)) == len(Store.open(store))


def test_what_goes_wrong_in_building_an_epoch_is_raised_where_batches_are_taken(store, corpus):
    feeder = Feeder(Library(corpus, store), LAYOUT, Recipe(rows=500, length=200), CPU)
    with pytest.raises(ValueError, match="not a batch of 500"):
        feeder.fill({})
