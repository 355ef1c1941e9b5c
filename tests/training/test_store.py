"""The store of teacher speech: what is written comes back, and a part that can be seen is whole."""

import numpy as np
import pytest

from training.store import FRAME, Store, Utterance, part_names, write_part


def utterance(sentence: int, durations: list[int]) -> Utterance:
    frames = np.array(durations, np.uint16)
    total = int(frames.sum())
    rng = np.random.default_rng(sentence)
    return Utterance(
        sentence=sentence,
        pcm=rng.integers(-32768, 32767, total * FRAME).astype(np.int16),
        phone=rng.integers(0, 178, len(durations)).astype(np.uint8),
        frames=frames,
        f0=rng.uniform(0, 300, total).astype(np.float16),
    )


def test_utterances_come_back_in_the_order_of_parts(tmp_path):
    first, second, third = utterance(5, [3, 4]), utterance(6, [1]), utterance(7, [2, 2, 2])
    write_part(tmp_path, "001", [third])
    write_part(tmp_path, "000", [first, second])
    store = Store.open(tmp_path)
    pcm = store.pcm()
    assert store.sentence.tolist() == [5, 6, 7]
    for i, expected in enumerate([first, second, third]):
        np.testing.assert_array_equal(pcm[store.start[i] : store.start[i + 1]], expected.pcm)
        np.testing.assert_array_equal(store.f0_of(i), expected.f0)
        span = slice(store.phone_start[i], store.phone_start[i + 1])
        np.testing.assert_array_equal(store.phone[span], expected.phone)
        np.testing.assert_array_equal(store.frames[span], expected.frames)


def test_a_part_without_its_index_is_not_seen(tmp_path):
    write_part(tmp_path, "000", [utterance(0, [2])])
    (tmp_path / "part-001.pcm").write_bytes(b"\0\0")
    assert part_names(tmp_path) == ["000"]


def test_an_utterance_whose_lengths_disagree_is_refused(tmp_path):
    bad = utterance(0, [2, 3])
    bad = Utterance(bad.sentence, bad.pcm[:-1], bad.phone, bad.frames, bad.f0)
    with pytest.raises(ValueError, match="disagree"):
        write_part(tmp_path, "000", [bad])


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="generate"):
        Store.open(tmp_path)
