"""The teacher's speech as the store keeps it: whole sentences without long silences."""

import numpy as np

from training.corpus import Corpus
from training.generate import LEAD, TAIL, Spoken, make_part, split_chunks, todo, trim, utterance
from training.store import FRAME, Store, part_names


class Hummer:
    """Says silence as 20 frames of nothing and any other phoneme as 4 frames of a tone of its own pitch."""

    def speak(self, phone, rng):
        frames = np.where(phone == 0, 20, 4).astype(np.int64)
        hz = np.repeat(phone.astype(np.float32) * 10, frames)
        audio = 0.5 * np.sin(np.cumsum(np.repeat(hz, FRAME)) * 2 * np.pi / 24000).astype(np.float32)
        return Spoken(audio, frames, hz)


def test_a_sentence_is_cut_where_two_silences_meet():
    chunks = split_chunks(np.array([0, 5, 6, 0, 0, 7, 0], np.uint8))
    assert [chunk.tolist() for chunk in chunks] == [[0, 5, 6, 0], [0, 7, 0]]


def test_an_utterance_keeps_short_silences_at_both_ends_and_all_between():
    made = utterance(Hummer(), 3, np.array([0, 20, 21, 0, 0, 22, 0], np.uint8))
    assert made.sentence == 3
    assert made.frames[0] == LEAD
    assert made.frames[1:-1].tolist() == [4, 4, 20, 20, 4]
    assert TAIL - 1 <= made.frames[-1] <= TAIL
    assert len(made.pcm) == made.frames.sum() * FRAME == len(made.f0) * FRAME
    assert made.f0[LEAD] == 200


def test_what_is_louder_than_full_scale_is_clipped():
    loud = Spoken(np.full(40 * FRAME, 1.5, np.float32), np.array([20, 20]), np.zeros(40, np.float32))
    assert trim(0, np.array([0, 5], np.uint8), loud).pcm.max() == 32767


def test_a_part_holds_its_sentences_and_is_not_made_again(tmp_path):
    lengths = np.array([3, 4, 3])
    phone = np.array([0, 9, 0, 0, 8, 7, 0, 0, 6, 0], np.uint8)
    none = np.zeros(0)
    corpus = Corpus(phone, lengths, (none,), (none,), (none,), 0, 0)
    assert todo(tmp_path, 1, 1000) == [(1, 401), (401, 801), (801, 1000)]
    make_part(corpus, Hummer(), (1, 3), tmp_path)
    store = Store.open(tmp_path)
    assert store.sentence.tolist() == [1, 2]
    assert store.phone.tolist() == [0, 8, 7, 0, 0, 6, 0]
    assert part_names(tmp_path) == ["000001"]
    assert todo(tmp_path, 1, 1000) == [(401, 801), (801, 1000)]
