"""The speech tokenizer: codes that round-trip, any length alike, and the same tokens in training as when served."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import tokenize_store, train_tokenizer
from training.loop import export
from training.store import Store
from training.tokenizer import LEVELS, Encoder, codes, from_index, load_encoder, quantise, to_index
from training.tokenizer_onnx import write_onnx

CPU = torch.device("cpu")
LEVELS_TENSOR = torch.tensor(LEVELS, dtype=torch.float32)


def test_every_code_round_trips():
    index = torch.arange(codes())
    numbers = from_index(index, LEVELS_TENSOR)
    torch.testing.assert_close(to_index(numbers, LEVELS_TENSOR), index)
    assert len(numbers.unique(dim=0)) == codes()


@given(st.lists(st.floats(-20, 20), min_size=len(LEVELS), max_size=len(LEVELS)))
def test_any_number_is_rounded_to_one_of_the_levels(values):
    q = quantise(torch.tensor(values), LEVELS_TENSOR)
    assert (q == q.round()).all()
    assert (q.abs() <= (LEVELS_TENSOR - 1) / 2).all()
    assert 0 <= int(to_index(q, LEVELS_TENSOR)) < codes()


def test_gradients_pass_through_the_rounding():
    z = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.1], requires_grad=True)
    quantise(z, LEVELS_TENSOR).sum().backward()
    assert (z.grad > 0).all()


def feature_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of features, the second shorter and with garbage beyond its length."""
    return torch.randn(2, 128, 57), torch.tensor([57, 30])


def test_padding_changes_no_token():
    features, lengths = feature_rows()
    encoder = Encoder().eval()
    with torch.no_grad():
        both = encoder.tokens(features, lengths)
        alone = encoder.tokens(features[1:, :, :30], lengths[1:])
    assert both.shape == (2, 15)
    assert both[1, :8].tolist() == alone[0].tolist()


def test_the_shipped_graph_gives_the_encoders_tokens_for_any_length_and_batch(tmp_path):
    export(tmp_path / "tokenizer.pt", Encoder().state_dict())
    encoder = load_encoder(tmp_path / "tokenizer.pt")
    write_onnx(encoder, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    for features, lengths in (feature_rows(), (torch.randn(1, 128, 8), torch.tensor([8]))):
        feed = {"feats": features.numpy(), "feats_length": lengths.numpy().astype(np.int32)}
        (ours,) = session.run(["indices"], feed)
        expected = encoder.tokens(features, lengths)
        assert ours.dtype == np.int32
        for row, (got, wanted) in enumerate(zip(ours, expected, strict=True)):
            count = -(-int(lengths[row]) // 4)
            assert got[:count].tolist() == wanted[:count].tolist()


def test_marks_are_no_sound_but_the_one_they_belong_to():
    stress, length, space, sound = 156, 158, 16, 43
    phone = np.array([stress, sound, length, space, space], np.uint8)
    label = train_tokenizer.frame_labels(phone, np.array([1, 2, 1, 2, 6], np.uint16))
    assert label.tolist() == [sound] * 4 + [255] * 2 + [16] * 6


@pytest.fixture
def trainer(store):
    return train_tokenizer.Trainer(train_tokenizer.Rows(Store.open(store), CPU), 2, CPU)


def test_what_is_heard_and_what_is_said_come_from_one_place(store, trainer):
    audio, label, pitch = trainer.rows.draw(3)
    assert audio.shape == (3, 75 * 960)
    assert label.shape == pitch.shape == (3, 300)
    flat = Store.open(store).pcm()
    crop = (audio[0] * 32768).round().short().numpy()
    at = flat.tobytes().index(crop.tobytes()) // 2
    hertz = np.abs(np.fft.rfft(crop[:960] * np.hanning(960), 24000)).argmax()
    assert abs(hertz - float(pitch[0, :3].mean())) < 60
    assert 0 <= at <= len(flat) - len(crop)


def test_the_loss_falls(trainer):
    losses = torch.stack([trainer.advance(0.1, 1.0) for _ in range(12)])
    assert losses[-3:, 0].mean() < losses[:3, 0].mean()


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(trainer):
    def step():
        torch.manual_seed(1)
        return trainer.advance(0.5, 1.0), {name: weight.clone() for name, weight in trainer.weights().items()}

    trainer.advance(0.5, 1.0)
    saved = copy.deepcopy(trainer.state())
    expected = step()
    trainer.load(saved)
    torch.testing.assert_close(step(), expected)


def test_what_ships_is_the_averaged_encoder(trainer, tmp_path):
    trainer.advance(0.5, 1.0)
    export(tmp_path / "tokenizer.pt", trainer.weights())
    encoder = load_encoder(tmp_path / "tokenizer.pt")
    torch.testing.assert_close(
        encoder.project.weight, trainer.average.state()["0.project.weight"], atol=1e-3, rtol=1e-3
    )


def test_a_store_is_tokenised_utterance_by_utterance(store):
    (store / "tokens-000.npz").unlink()
    tokeniser = tokenize_store.Tokeniser(Encoder(), CPU)
    tokenize_store.tokenise_part(tokeniser, store, "000")
    part = Store.open(store, ["000"])
    with np.load(store / "tokens-000.npz") as made:
        assert made["tokens"].tolist() == (-(-np.diff(part.start) // 960)).tolist()
        last = np.cumsum(made["tokens"])[1]
        first = last - made["tokens"][1]
        (alone,) = tokeniser([part.pcm()[part.start[1] : part.start[2]]])
        assert made["token"][first:last].tolist() == alone.tolist()


def test_an_utterances_tokens_do_not_depend_on_its_neighbours_in_a_batch(store):
    tokeniser = tokenize_store.Tokeniser(Encoder(), CPU)
    rng = np.random.default_rng(0)
    audio = [rng.normal(0, 3000, n).astype(np.int16) for n in (5000, 24000, 9600)]
    together = tokeniser(audio)
    assert [len(row) for row in together] == [6, 25, 10]
    for row, samples in zip(together, audio, strict=True):
        (alone,) = tokeniser([samples])
        assert (row == alone).mean() > 0.7  # the last tokens hear the padding's silence instead of the file's end
