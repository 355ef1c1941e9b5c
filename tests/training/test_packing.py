"""Documents for the language model: what each position sees, must predict and should look at."""

import numpy as np
import pytest

from training.packing import Layout, Spoken, epoch, interleaved, joined, pack

LAYOUT = Layout(text=100, speech=50)


def spoken(seed: int = 0, sentences: int = 12) -> Spoken:
    """Sentences whose n text tokens are spoken four speech tokens each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, 14, sentences)
    text = rng.integers(0, 100, counts.sum()).astype(np.int32)
    owner = np.concatenate([np.repeat(np.arange(n), 4) for n in counts]).astype(np.int32)
    speech = rng.integers(0, 50, 4 * counts.sum()).astype(np.int32)
    return Spoken((text, text), (counts, counts), speech, 4 * counts, (owner, owner))


def sentence(data: Spoken, i: int) -> tuple[list[int], list[int]]:
    a, b = np.cumsum(data.texts[0])[i] - data.texts[0][i], np.cumsum(data.speeches)[i] - data.speeches[i]
    return data.text[0][a : a + data.texts[0][i]].tolist(), data.speech[b : b + data.speeches[i]].tolist()


def split(documents):
    cuts = np.cumsum(documents.lengths)[:-1]
    return list(zip(*(np.split(x, cuts) for x in (documents.ids, documents.label, documents.guide)), strict=True))


def test_a_joined_document_is_sos_texts_task_speeches():
    data = spoken()
    order = np.arange(len(data))
    at = 0
    for ids, label, _ in split(joined(data, order, LAYOUT, 400, np.random.default_rng(1))):
        task = ids.tolist().index(LAYOUT.task)
        texts: list[int] = []
        speeches: list[int] = []
        while len(texts) < task - 1:
            text, speech = sentence(data, at)
            texts, speeches, at = texts + text, speeches + speech, at + 1
        assert ids[0] == LAYOUT.sos
        assert ids[1:task].tolist() == texts
        assert (ids[task + 1 :] - LAYOUT.first_speech).tolist() == speeches
        assert label[:task].tolist() == [-100] * task
        assert label[task:].tolist() == [*speeches, LAYOUT.end]
    assert at == len(data)


def test_the_guide_points_at_the_text_being_spoken_next():
    data = spoken()
    for ids, _, guide in split(joined(data, np.arange(len(data)), LAYOUT, 400, np.random.default_rng(1))):
        task = ids.tolist().index(LAYOUT.task)
        assert guide[:task].tolist() == [-100] * task
        assert guide[task:-1].tolist() == np.repeat(np.arange(1, task), 4).tolist()
        assert guide[-1] == task - 1


def test_the_streaming_form_alternates_five_and_fifteen_and_asks_for_text():
    data = spoken()
    for i in range(len(data)):
        text, speech = sentence(data, i)
        ((ids, label, guide),) = split(interleaved(data, np.array([i]), LAYOUT))
        blocks, at = len(text) // 5, 1
        for b in range(blocks):
            assert ids[at : at + 5].tolist() == text[5 * b : 5 * b + 5]
            assert (ids[at + 5 : at + 20] - LAYOUT.first_speech).tolist() == speech[15 * b : 15 * b + 15]
            assert label[at + 4 : at + 20].tolist() == [*speech[15 * b : 15 * b + 15], LAYOUT.fill]
            at += 20
        rest = text[5 * blocks :]
        assert ids[at : at + len(rest)].tolist() == rest
        assert ids[at + len(rest)] == LAYOUT.task
        assert label[at + len(rest) :].tolist() == [*speech[15 * blocks :], LAYOUT.end]
        known = np.flatnonzero(guide >= 0)
        assert (guide[known] <= known).all()


def test_sentences_with_too_little_speech_do_not_stream():
    short = Spoken(
        (np.arange(10, dtype=np.int32),),
        (np.array([10]),),
        np.arange(30, dtype=np.int32),
        np.array([30]),
        (np.zeros(30, np.int32),),
    )
    assert len(interleaved(short, np.array([0]), LAYOUT).lengths) == 0


@pytest.mark.parametrize("length", [60, 200])
def test_rows_hold_whole_documents_each_once(length):
    data = spoken(sentences=40)
    documents = [interleaved(data, np.array([i]), LAYOUT) for i in range(40)]
    rows = pack(documents, length, LAYOUT, np.random.default_rng(0))
    found = []
    for r in range(len(rows.ids)):
        for number in range(rows.document[r].max() + 1):
            where = np.flatnonzero(rows.document[r] == number)
            assert (np.diff(where) == 1).all()
            assert rows.position[r, where].tolist() == list(range(len(where)))
            guide = rows.guide[r, where]
            found.append(
                (
                    rows.ids[r, where].tolist(),
                    rows.label[r, where].tolist(),
                    np.where(guide >= 0, guide - where[0], guide).tolist(),
                )
            )
    expected = [tuple(x.tolist() for x in split(d)[0]) for d in documents if d.lengths[0] <= length]
    assert sorted(found) == sorted(expected)
    assert (rows.label[rows.document < 0] == -100).all()


def test_an_epoch_uses_every_sentence_once():
    data = spoken(sentences=30)
    rows = epoch(data, LAYOUT, 300, 0.2, 1000, np.random.default_rng(3))
    labels = rows.label[(rows.label >= 0) & (rows.label < 50)]
    assert sorted(labels.tolist()) == sorted(data.speech.tolist())
