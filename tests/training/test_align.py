"""From letters to phonemes to speech tokens: which text is spoken when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.align import MAX_PHONEMES, Word, read, unescape
from training.corpus import Corpus
from training.packing import align
from training.store import FRAME, Store, Utterance, write_part


class Speller:
    """A reader that says every letter as itself, digits as words, and sentences up to their full stop."""

    vocabulary = {" ": 1} | {chr(c): c - 90 for c in range(ord("a"), ord("z") + 1)}

    def sentences(self, text):
        return [part.strip() + "." for part in text.split(".") if part.strip()]

    def spoken(self, sentence):
        return sentence.replace("2", "two")

    def words(self, spoken):
        words = spoken.rstrip(".").split(" ")
        for i, word in enumerate(words):
            yield Word(word, word.lower(), followed=i < len(words) - 1)
        yield Word(".", "", followed=False)


def test_each_chunk_is_framed_by_silences_and_words_are_separated():
    reading = read(Speller(), "ab c. d.")
    v = Speller.vocabulary
    assert reading.phone.tolist() == [0, v["a"], v["b"], v[" "], v["c"], 0, 0, v["d"], 0]


def test_letters_lie_at_their_own_phonemes():
    reading = read(Speller(), "ab c. d.")
    assert reading.place.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_word_said_otherwise_than_written_is_spread_over_its_sounds():
    reading = read(Speller(), "a 2 b.")
    assert len(reading.phone) == 2 + len("a two b")
    a, _, two, _, b, end, _ = reading.place.tolist()
    assert (a, b, end) == (1, 7, 8)
    assert 2 < two < 6


@pytest.mark.parametrize("text", ["", ".", "x" * (MAX_PHONEMES + 1) + "."])
def test_what_the_teacher_cannot_say_has_no_reading(text):
    assert read(Speller(), text) is None


@given(st.lists(st.text("abcxyz2 ", min_size=1, max_size=12), min_size=1, max_size=4))
def test_places_never_fall_and_stay_among_the_phonemes(parts):
    text = ". ".join(" ".join(part.split()) for part in parts) + "."
    reading = read(Speller(), text)
    if reading is not None:
        assert len(reading.place) == len(text) + 1
        assert (np.diff(reading.place) >= 0).all()
        assert 0 <= reading.place[0] <= reading.place[-1] <= len(reading.phone)


@given(st.text('ab"\\', max_size=20))
def test_escaped_quotes_are_read_as_quotes(plain):
    text = plain.replace("\\", "").replace('"', '\\"')
    read_as, where = unescape(text)
    assert read_as == plain.replace("\\", "")
    assert len(where) == len(text) + 1
    assert all(text[i] in ("\\", read_as[where[i]]) for i in range(len(text)))


def test_a_speech_token_belongs_to_the_text_token_spoken_at_its_middle(tmp_path):
    # Three text tokens begin at phonemes 1, 2 and 3 of five, which last 0, 4, 8, 4 and 0 frames of 12.5 ms; a speech
    # token has 40 ms, so the five of them have their middles at 20, 60, 100, 140 and 180 ms, frames 1.6 to 14.4.
    frames = np.array([0, 4, 8, 4, 0], np.uint16)
    total = int(frames.sum())
    phone = np.arange(5).astype(np.uint8)
    speech = Utterance(1, np.zeros(total * FRAME, np.int16), phone, frames, np.zeros(total, np.float16))
    write_part(tmp_path, "000", [speech])
    other = np.array([9, 9], np.uint16)
    corpus = Corpus(
        phone=np.concatenate([np.zeros(3, np.uint8), phone]),
        phones=np.array([3, 5]),
        token=(np.concatenate([other, np.array([5, 6, 7], np.uint16)]),),
        place=(np.array([0, 1, 1, 2, 3], np.float32),),
        tokens=(np.array([2, 3]),),
        measured=0,
        held_out=0,
    )
    spoken = align(corpus, Store.open(tmp_path), np.array([40, 41, 42, 43, 44], np.int16), np.array([5]))
    assert spoken.text[0].tolist() == [5, 6, 7]
    assert spoken.texts[0].tolist() == [3]
    assert spoken.speech.tolist() == [40, 41, 42, 43, 44]
    assert spoken.owner[0].tolist() == [0, 1, 1, 1, 2]
