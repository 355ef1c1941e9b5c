"""Text that comes in pieces, at the encode and llm workers' stages, on the tiny reference model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.engine.llm import LiveJob
from lighttts.errors import InvalidInput, ProtocolError
from lighttts.frontend.encode import EncodeJob
from lighttts.transport import wire
from lighttts.workers.encode import EncodeStage
from lighttts.workers.llm import LLMStage
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.stage import Result, Work
from tests.workers.golden import NO_TOKENS, VOICE, encode_engine, generated, give, llm_engine

TEXT = "Good morning to all of you. It is cold."
SENTENCES = [np.arange(1, 18, dtype=np.int32), np.arange(30, 37, dtype=np.int32)]
PROMPT_TEXT = np.array([11, 12, 13], np.int32)
PROMPT = np.arange(20, dtype=np.int32)


# ---- encode ----------------------------------------------------------------------------------------------------------


def encode(message: wire.EncodeWork | wire.TextWork) -> wire.Message:
    stage = EncodeStage(encode_engine(), 9, 4)
    give(stage, message)
    (result,) = stage.step()
    assert result.ends
    assert result.message
    return result.message


@pytest.mark.parametrize(("asked", "spoken"), [("auto", "interleaved"), ("sentences", "sentences")])
def test_a_voice_is_encoded_before_its_text(asked: str, spoken: str) -> None:
    whole = encode(wire.EncodeWork("a", 0, TEXT, VOICE, "", b""))
    voice = encode(wire.EncodeWork("a", 0, "", VOICE, "", b"", pieces=asked))
    assert isinstance(whole, wire.Encoded)
    assert voice == replace(whole, lengths=(), text_ids=NO_TOKENS, pieces=spoken)


def test_a_text_is_encoded_from_the_beginning_of_its_sentence() -> None:
    sentences = [s.ids for s in encode_engine().encode(_job("Good morning to all of you.")).sentences]
    result = encode(wire.TextWork("a", 3, "sentences", False, TEXT))
    assert result == wire.EncodedText("a", 3, 9, (len(sentences[0]),), True, 27, sentences[0])
    begun = encode(wire.TextWork("a", 3, "interleaved", False, "Good morning to all"))
    assert isinstance(begun, wire.EncodedText)
    assert (begun.whole, begun.used) == (False, 0)
    assert begun.text_ids.tolist() == sentences[0][: len(begun.text_ids)].tolist()
    whole = encode(wire.TextWork("a", 3, "interleaved", True, TEXT))
    assert isinstance(whole, wire.EncodedText)
    assert (len(whole.lengths), whole.whole, whole.used) == (1, True, len(TEXT))


def _job(text: str) -> EncodeJob:
    return EncodeJob(text, VOICE)


# ---- llm -------------------------------------------------------------------------------------------------------------


def work(method: str, **changes: object) -> wire.GenerateWork:
    message = wire.GenerateWork("a", 2, 42, 0, 0, (), NO_TOKENS, PROMPT_TEXT, PROMPT, NO_TOKENS, method)
    return replace(message, **changes)  # type: ignore[arg-type]


def test_an_instruction_stands_before_all_blocks() -> None:
    taken = work("interleaved", lead=2)
    frames = spoken(taken, parts(4))
    assert log_of(frames, 0) == interleaved(0, lead=2) != interleaved(0)


def parts(cuts: int, first: int = 0) -> list[wire.MoreText]:
    """The sentences from number `first` on, in parts of `cuts` ids, and the end."""
    found = [
        wire.MoreText("a", 2, number, at + cuts >= len(text), False, text[at : at + cuts])
        for number, text in enumerate(SENTENCES)
        if number >= first
        for at in range(0, len(text), cuts)
    ]
    return [*found, wire.MoreText("a", 2, len(SENTENCES), True, True, NO_TOKENS)]


def stage(slots: int = 4, max_length: int = 512) -> LLMStage:
    return LLMStage(llm_engine(slots, max_length), epoch=9, capacity=slots)


def run(stage: LLMStage) -> list[Result]:
    results = []
    while stage.busy:
        results += stage.step()
    return results


def spoken(message: wire.GenerateWork, texts: list[wire.MoreText], *, at_once: bool = False) -> list[wire.Tokens]:
    worker, results = stage(), []
    give(worker, message)
    for text in texts:
        give(worker, text)
        results += [] if at_once else run(worker)
    results += run(worker)
    assert not worker.busy
    assert [result.ends for result in results] == [False] * (len(results) - 1) + [True]
    return [result.message for result in results]  # type: ignore[misc]


def log_of(frames: list[wire.Tokens], sentence: int) -> list[int]:
    """Tokens of a sentence, -1 where a block was over."""
    log: list[int] = []
    for frame in frames:
        if frame.sentence == sentence:
            log += frame.tokens.tolist() or ([] if frame.final else [-1])
    return log


def interleaved(number: int, lead: int = 0) -> list[int]:
    engine, log = llm_engine(slots=1), []
    engine.open(LiveJob("alone", PROMPT_TEXT, PROMPT, sentence_seed(42, number), NO_TOKENS, lead))
    engine.feed("alone", SENTENCES[number], last=True)
    while engine.busy:
        for step in engine.step():
            log += [*step.tokens, *[-1] * step.filled]
    return log


@pytest.mark.parametrize("cuts", [1, 4, 100])
@pytest.mark.parametrize("at_once", [True, False])
def test_each_sentence_is_spoken_with_its_own_seed_however_it_comes(cuts: int, at_once: bool) -> None:
    frames = spoken(work("interleaved"), parts(cuts), at_once=at_once)
    for number in range(len(SENTENCES)):
        assert log_of(frames, number) == interleaved(number)
    frames = spoken(work("sentences"), parts(cuts), at_once=at_once)
    for number, text in enumerate(SENTENCES):
        assert log_of(frames, number) == generated(text, PROMPT_TEXT, PROMPT, sentence_seed(42, number))


@pytest.mark.parametrize("method", wire.METHODS)
def test_frames_are_numbered_and_the_end_is_a_sentence_without_tokens(method: str) -> None:
    frames = spoken(work(method), parts(3))
    assert [frame.seq for frame in frames] == [*range(len(frames))]
    assert [frame.sentence for frame in frames if frame.final] == [0, 1, 2]
    assert (frames[-1].tokens.tolist(), frames[-1].last) == ([], True)
    assert {(frame.request_id, frame.attempt, frame.epoch) for frame in frames} == {("a", 2, 9)}


@pytest.mark.parametrize("method", wire.METHODS)
def test_another_worker_goes_on_behind_any_frame(method: str) -> None:
    whole = spoken(work(method), parts(4))
    for sent in range(1, len(whole)):
        sentence = whole[sent - 1].sentence + whole[sent - 1].final
        done = np.array(log_of(whole[:sent], sentence), np.int32)
        taken = work(method, sentence=sentence, seq=sent, done_tokens=done)
        rest = spoken(taken, parts(100, first=sentence))
        for number in range(sentence, len(SENTENCES)):
            before, after, wanted = (log_of(frames, number) for frames in (whole[:sent], rest, whole))
            missing = [-1] if [*before, -1, *after] == wanted else []
            assert [*before, *missing, *after] == wanted
        assert rest[0].seq == sent


def test_it_rests_without_text_and_an_abort_frees_it() -> None:
    worker = stage(slots=1)
    give(worker, work("interleaved"))
    assert not worker.busy
    for part in parts(4)[:4]:
        give(worker, part)
    run(worker)
    assert worker._engine.active == 1
    worker.abort(Work("a", 2))
    assert worker._engine.free_slots == 1
    assert not worker.busy


def test_what_makes_no_sense_ends_the_request_and_no_other() -> None:
    worker = stage(max_length=120)
    give(worker, work("sentences"))
    with pytest.raises(InvalidInput):
        give(worker, replace(parts(100)[0], text_ids=np.ones(200, np.int32)))
    give(worker, replace(work("interleaved"), request_id="b"))
    with pytest.raises(InvalidInput):
        give(worker, replace(parts(100)[0], request_id="b", text_ids=np.array([-1], np.int32)))
    ordinary = wire.GenerateWork("c", 2, 1, 0, 0, (3,), PROMPT_TEXT, NO_TOKENS, NO_TOKENS, NO_TOKENS)
    give(worker, ordinary)
    with pytest.raises(ProtocolError):
        give(worker, replace(parts(100)[0], request_id="c"))
