"""The prepared text: what is stored comes back, and its tokens are the front end's."""

import numpy as np
import pytest

from lighttts.frontend.tokenizer import TextTokenizer
from training.bpe import Encoder, train_bpe
from training.corpus import PLACE_UNIT, Corpus
from training.text import clean, normalise, wordnet_sentences

TEXTS = ["The cat sat on the mat.", "A second sentence, with the cat.", 'He said \\"the mat\\" and sat.']


def places(text: str) -> np.ndarray:
    """As if every character were a phoneme."""
    return np.arange(len(text) + 1, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    train_bpe(TEXTS, tmp_path / "bpe", 280)
    return tmp_path / "bpe"


def corpus(folder) -> Corpus:
    kinds = [
        encoder.encode(TEXTS, [places(text) for text in TEXTS])
        for encoder in (Encoder(folder), Encoder(folder, spaced=True, dropout=0.5))
    ]
    return Corpus(
        phone=np.arange(12, dtype=np.uint8),
        phones=np.array([5, 4, 3]),
        token=tuple(kind.token for kind in kinds),
        place=tuple(kind.place for kind in kinds),
        tokens=tuple(kind.tokens for kind in kinds),
        measured=1,
        held_out=1,
    )


def assert_same(a: Corpus, b: Corpus) -> None:
    np.testing.assert_array_equal(a.phone, b.phone)
    np.testing.assert_array_equal(a.phones, b.phones)
    for k in range(2):
        np.testing.assert_array_equal(a.token[k], b.token[k])
        np.testing.assert_array_equal(a.tokens[k], b.tokens[k])
        np.testing.assert_allclose(a.place[k], b.place[k], atol=0.5 / PLACE_UNIT)
    assert (a.measured, a.held_out) == (b.measured, b.held_out)


def test_a_corpus_comes_back_as_it_was_saved(folder, tmp_path):
    made = corpus(folder)
    made.save(tmp_path / "corpus.npz")
    assert_same(Corpus.load(tmp_path / "corpus.npz"), made)


def test_the_first_sentences_are_a_corpus_of_their_own(folder):
    made = corpus(folder)
    short = made.first(2)
    assert len(short) == 2
    assert short.phone.tolist() == list(range(9))
    for k in range(2):
        assert len(short.token[k]) == short.tokens[k].sum() == made.tokens[k][:2].sum()
    assert_same(made.first(3), made)


def test_the_tokens_are_the_front_ends(folder):
    served, encoded = TextTokenizer(folder, 2, 1000), corpus(folder)
    ends = np.cumsum(encoded.tokens[0])[:-1]
    assert [ids.tolist() for ids in np.split(encoded.token[0], ends)] == [served.encode(t).tolist() for t in TEXTS]


def test_a_token_lies_where_its_first_letter_does_and_not_at_the_space_before(folder):
    encoded = Encoder(folder).encode(["the cat"], [places("the cat")])
    assert encoded.place.tolist() == [0, 4]


def test_split_at_random_the_text_is_still_the_same(folder):
    vocabulary = {v: k for k, v in TextTokenizer(folder, 2, 1000)._tokenizer.get_vocab().items()}
    splits = set()
    for _ in range(20):
        encoded = Encoder(folder, spaced=True, dropout=0.5).encode(["the cat"], [places("the cat")])
        words = [vocabulary[int(i)] for i in encoded.token]
        assert "".join(words) == "Ġthe" + "Ġcat"
        splits.add(tuple(words))
    assert len(splits) > 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("He paid 20 dollars", "He paid twenty dollars."),
        ("Is it so?", "Is it so?"),
        ('She said "no" again.', 'She said \\"no\\" again.'),
    ],
)
def test_lines_become_what_the_front_end_makes_of_them(line, text):
    assert normalise(line) == text


def test_tokenised_spacing_is_undone():
    assert clean("The old  man , `` shaken '' .") == "The old man, `` shaken ''."


def test_wordnet_gives_its_definitions_and_its_examples_as_sentences(tmp_path):
    (tmp_path / "data.verb").write_text(
        "  1 This software and database is being provided to you\n"
        "00001740 29 v 01 breathe 0 001 @ 00001 v 0000 | draw air (into) the lungs and out; "
        '"I can breathe better here"; "Breathe deeply!"\n'
    )
    assert list(wordnet_sentences(tmp_path)) == ["Draw air the lungs and out.", "I can breathe better here."]
