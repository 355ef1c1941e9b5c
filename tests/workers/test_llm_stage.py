"""The llm worker's stage on the tiny reference model: what it sends, in which frames, for which sentence."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.engine.llm_spacing import Spacing
from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport import wire
from lighttts.workers.llm import LLMStage
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.stage import Result, Work
from tests.workers.golden import NO_TOKENS, generated, give, llm_engine

SENTENCES = [np.array([5, 9, 200, 31], np.int32), np.array([77, 3], np.int32), np.array([1, 2, 3, 4, 5, 6], np.int32)]
PROMPT_TEXT = np.array([11, 12, 13], np.int32)
PROMPT = np.arange(20, dtype=np.int32)


def generate(
    request_id: str, sentences: list[np.ndarray], seed: int = 1, *, prompt_text: np.ndarray = PROMPT_TEXT
) -> wire.GenerateWork:
    lengths = tuple(map(len, sentences))
    ids = np.concatenate(sentences)
    return wire.GenerateWork(request_id, 2, seed, 0, 0, lengths, ids, prompt_text, PROMPT, NO_TOKENS)


def stage(slots: int = 4, max_length: int = 512) -> LLMStage:
    return LLMStage(llm_engine(slots, max_length), epoch=9, capacity=slots)


def run(stage: LLMStage) -> list[Result]:
    results = []
    while stage.busy:
        results += stage.step()
    return results


def frames_of(results: list[Result], request_id: str) -> list[wire.Tokens]:
    return [
        result.message
        for result in results
        if result.work.request_id == request_id and isinstance(result.message, wire.Tokens)
    ]


def tokens_of(frames: list[wire.Tokens], sentence: int) -> list[int]:
    return [token for frame in frames if frame.sentence == sentence for token in frame.tokens.tolist()]


def test_each_sentence_is_generated_in_turn_with_its_own_seed() -> None:
    worker = stage()
    give(worker, generate("a", SENTENCES, seed=42))
    frames = frames_of(run(worker), "a")
    for index, text in enumerate(SENTENCES):
        expected = generated(text, PROMPT_TEXT, PROMPT, sentence_seed(42, index))
        assert tokens_of(frames, index) == expected
    assert [frame.sentence for frame in frames] == sorted(frame.sentence for frame in frames)


def test_frames_are_numbered_through_the_request_and_say_what_they_end() -> None:
    worker = stage()
    give(worker, generate("a", SENTENCES))
    results = run(worker)
    frames = frames_of(results, "a")
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert {(frame.request_id, frame.attempt, frame.epoch) for frame in frames} == {("a", 2, 9)}
    assert [frame.sentence for frame in frames if frame.final] == [0, 1, 2]
    assert (
        [result.ends for result in results] == [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    )


@pytest.mark.parametrize("sent", range(8))
def test_another_worker_goes_on_behind_any_frame_with_the_tokens_there_would_have_been(sent: int) -> None:
    worker = stage()
    give(worker, generate("a", SENTENCES, seed=42))
    whole = frames_of(run(worker), "a")
    assert len(whole) > sent
    sentence = whole[sent - 1].sentence + whole[sent - 1].final if sent else 0
    done = tokens_of(whole[:sent], sentence)
    other = stage()
    work = generate("a", SENTENCES, seed=42)
    give(other, replace(work, sentence=sentence, seq=sent, done_tokens=np.array(done, np.int32)))
    frames = frames_of(run(other), "a")
    assert [frame.seq for frame in frames] == [*range(sent, sent + len(frames))]
    for index in range(len(SENTENCES)):
        assert tokens_of(whole[:sent], index) + tokens_of(frames, index) == tokens_of(whole, index)
    assert [frame.sentence for frame in frames if frame.final] == [*range(sentence, len(SENTENCES))]


def test_a_sentence_that_is_none_of_the_text_is_refused() -> None:
    with pytest.raises(ProtocolError, match="sentence"):
        give(stage(), replace(generate("a", SENTENCES), sentence=3))


def test_the_first_tokens_travel_in_small_frames_and_later_ones_in_larger() -> None:
    worker = stage()
    give(worker, generate("a", [np.arange(30, dtype=np.int32)] * 20))
    frames = frames_of(run(worker), "a")
    sent = np.cumsum([0, *(len(frame.tokens) for frame in frames)])
    sizes = [(len(frame.tokens), before < 60) for frame, before in zip(frames, sent, strict=False) if not frame.final]
    assert set(sizes) == {(4, True), (10, False)}


def test_requests_side_by_side_get_what_each_gets_alone() -> None:
    together = stage()
    for index in range(6):
        give(together, generate(f"r{index}", SENTENCES, seed=index))
    assert together.waiting > 0
    results = run(together)
    for index in range(6):
        alone = stage(slots=1)
        give(alone, generate("alone", SENTENCES, seed=index))
        expected, frames = frames_of(run(alone), "alone"), frames_of(results, f"r{index}")
        assert [tokens_of(frames, s) for s in range(3)] == [tokens_of(expected, s) for s in range(3)]


def test_an_aborted_request_leaves_its_slot_at_once_and_the_others_alone() -> None:
    worker = stage(slots=1)
    give(worker, generate("a", SENTENCES))
    give(worker, generate("b", SENTENCES))
    worker.step()
    worker.abort(Work("a", 2))
    worker.abort(Work("a", 2))
    results = run(worker)
    assert not frames_of(results, "a")
    assert frames_of(results, "b")[-1].last


def test_the_same_request_of_two_brokers_is_two_requests() -> None:
    worker = stage()
    give(worker, generate("a", SENTENCES, seed=1), seat=0)
    give(worker, generate("a", SENTENCES[:1], seed=2), seat=1)
    worker.step()
    worker.abort(Work("a", 2, 1))
    results = run(worker)
    assert {result.work for result in results} == {Work("a", 2, 0)}
    expected = generated(SENTENCES[0], PROMPT_TEXT, PROMPT, sentence_seed(1, 0))
    assert tokens_of(frames_of(results, "a"), 0) == expected


def test_lengths_that_do_not_fit_the_text_are_refused() -> None:
    with pytest.raises(ProtocolError, match="lengths"):
        give(stage(), wire.GenerateWork("a", 0, 1, 0, 0, (3,), np.zeros(2, np.int32), NO_TOKENS, NO_TOKENS, NO_TOKENS))
    with pytest.raises(ProtocolError, match="lengths"):
        give(stage(), wire.GenerateWork("a", 0, 1, 0, 0, (), NO_TOKENS, NO_TOKENS, NO_TOKENS, NO_TOKENS))


def test_a_sentence_too_long_for_the_model_ends_its_request_and_no_other() -> None:
    worker = stage(max_length=100)
    with pytest.raises(InvalidInput):
        give(worker, generate("a", [np.ones(200, np.int32)]))
    give(worker, generate("b", [SENTENCES[0], np.ones(200, np.int32)]))
    give(worker, generate("c", SENTENCES))
    results = run(worker)
    ends = {result.work.request_id: result.message for result in results if result.ends}
    assert isinstance(ends["b"], wire.StageFailed)
    assert (ends["b"].code, ends["b"].field) == ("invalid_input", "text")
    assert isinstance(ends["c"], wire.Tokens)


@given(seed=st.integers(0, 2**63 - 1), sentence=st.integers(0, 4095))
def test_a_sentences_seed_is_63_bits_and_the_first_ones_is_the_requests(seed: int, sentence: int) -> None:
    assert 0 <= sentence_seed(seed, sentence) < 2**63
    assert sentence_seed(seed, 0) == seed
    assert sentence_seed(seed, sentence) == sentence_seed(seed, sentence)


def test_sentences_do_not_share_seeds() -> None:
    seeds = {sentence_seed(seed, sentence) for seed in range(50) for sentence in range(50)}
    assert len(seeds) == 2500


def test_before_each_step_the_stage_waits_as_long_as_its_spacing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    slept: list[float] = []

    class Told(Spacing):
        def pause(self, active: int, *, full: bool) -> float:
            asked.append((active, full))
            return len(asked) / 8

    monkeypatch.setattr(time, "sleep", slept.append)
    worker = LLMStage(llm_engine(1), epoch=9, capacity=2, spacing=Told(0.0))
    give(worker, generate("a", SENTENCES))
    worker.step()
    give(worker, generate("b", SENTENCES))
    worker.step()
    assert asked == [(0, False), (1, True)]
    assert slept == [1 / 8, 2 / 8]
