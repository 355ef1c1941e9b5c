"""A sentence whose text comes piece by piece: its tokens are those of the plain loop over the blocks that models are
trained on, whenever the pieces come, whoever else is in the batch, and whichever engine goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighttts.engine import llm
from lighttts.engine.interleave import FILL
from lighttts.engine.llm import GenerateJob, LiveJob, LLMEngine, TokenStep
from lighttts.engine.llm_alone import AloneSteps
from lighttts.engine.llm_batched import BatchedSteps
from lighttts.errors import InvalidInput
from lighttts.models.directory import ModelDirectory
from lighttts.models.interleave import Mix
from lighttts.models.llm import SpeechLM, load_llm
from lighttts.models.sampling import sample

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
MAX_LENGTH = 400
NONE = np.zeros(0, np.int32)
STRATEGIES = {"cpu": AloneSteps, "gpu": BatchedSteps}


def ids(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


@cache
def model(fill: float = 3.0) -> SpeechLM:
    """The tiny model, made to draw `fill` every now and then, and to end sooner than it would."""
    loaded = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), torch.device("cpu"))
    with torch.no_grad():
        loaded.llm_decoder.bias[loaded.vocabulary.fill] += fill
        loaded.llm_decoder.bias[loaded.vocabulary.end_of_speech] += 2.0
    return loaded


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to run a model, on the CPU."""
    monkeypatch.setattr(
        llm, "_steps", lambda *args: STRATEGIES[request.param](*args[: 3 if request.param == "cpu" else 4])
    )
    return str(request.param)


def engine(*, slots: int = 4, mix: Mix | None = None, prefill_tokens: int = 128) -> LLMEngine:
    return LLMEngine(model(), slots=slots, max_length=MAX_LENGTH, prefill_tokens=prefill_tokens, mix=mix)


class Sentence:
    """One of many that differ in text, prompt and seed."""

    def __init__(self, number: int) -> None:
        random = np.random.default_rng(number)
        self.number = number
        self.text = ids(random.integers(0, 50, number * 3 % 23))
        self.prompt_text = ids(random.integers(0, 50, number % 8))
        self.lead = min(number % 3, len(self.prompt_text))
        self.prompt = ids(random.integers(0, 100, number * 7 % 50))
        self.seed = number * 7919

    def job(self, done: Sequence[int] = ()) -> LiveJob:
        return LiveJob(self.number, self.prompt_text, self.prompt, self.seed, ids(done), self.lead)


def blocks(sentence: Sentence) -> Iterator[tuple[list[int], list[int], bool]]:
    """Text, prompt's speech and whether it is the rest, of each part of the sequence: as upstream's training lays them
    out, of which the prompt is the beginning."""
    text, speech = [*sentence.prompt_text[sentence.lead :], *sentence.text], [*sentence.prompt]
    whole = len(text) // 5
    for part in range(whole):
        yield text[5 * part : 5 * part + 5], speech[15 * part : 15 * part + 15], False
    yield text[5 * whole :], speech[15 * whole :], True


@cache
def reference(number: int) -> tuple[int, ...]:
    """The plain loop, without cache or batch: what is made, FILL where a block is over."""
    sentence, lm = Sentence(number), model()
    vocabulary = lm.vocabulary
    sequence, made = [vocabulary.sos, *sentence.prompt_text[: sentence.lead]], []
    for text, prompt, rest in blocks(sentence):
        sequence += [*text, vocabulary.task_id] if rest else text
        sequence += [vocabulary.speech_offset + token for token in prompt]
        least = len(made) + max(0, 2 * len(sentence.text) - sum(token != FILL for token in made))
        spoken = len(prompt)
        while rest or spoken < 15:
            if rest and sum(token != FILL for token in made) >= 20 * len(sentence.text):
                return tuple(made)
            with torch.no_grad():
                logits = lm(lm.embed(torch.tensor([sequence])))[:, -1]
            if not rest or len(made) < least:
                logits[:, vocabulary.end_of_speech] = -torch.inf
            log = [vocabulary.fill if token == FILL else token for token in made]
            window = torch.tensor([([-1] * 10 + log)[-10:]])
            token = int(sample(logits, window, torch.tensor([sentence.seed]), torch.tensor([len(made)]), lm.sampling))
            if token >= vocabulary.speech:
                if rest:
                    return tuple(made)
                made.append(FILL)
                break
            made.append(token)
            sequence.append(vocabulary.speech_offset + token)
            spoken += 1
        else:
            if len(prompt) < 15:
                made.append(FILL)
    raise AssertionError("the rest has no end")


class Log:
    """What came of steps, by key."""

    def __init__(self) -> None:
        self.made: dict[Hashable, list[int]] = {}
        self.finished: set[Hashable] = set()

    def add(self, steps: Sequence[TokenStep]) -> None:
        for step in steps:
            assert step.key not in self.finished
            self.made.setdefault(step.key, []).extend([*step.tokens, *[FILL] * step.filled])
            if step.finished:
                self.finished.add(step.key)


def run(shared: LLMEngine, log: Log) -> Log:
    while shared.busy:
        log.add(shared.step())
    return log


def spoken(sentence: Sentence, cuts: Sequence[int] = (), *, eager: bool = False, done: Sequence[int] = ()) -> list[int]:
    """What is made of a sentence that comes in these cuts, each when all there is to do with those before is done, or
    `eager`: after one step."""
    shared, log = engine(), Log()
    shared.open(sentence.job(done))
    places = sorted(min(cut, len(sentence.text)) for cut in cuts)
    for begin, end in zip([0, *places], places, strict=False):
        shared.feed(sentence.number, sentence.text[begin:end], last=False)
        if eager:
            log.add(shared.step())
        else:
            run(shared, log)
    shared.feed(sentence.number, sentence.text[places[-1] if places else 0 :], last=True)
    run(shared, log)
    assert log.finished == {sentence.number}
    return log.made[sentence.number]


@pytest.mark.parametrize("number", range(24))
def test_tokens_are_those_of_the_plain_loop_over_the_blocks_of_training(number: int, strategy: str) -> None:
    assert tuple(spoken(Sentence(number))) == reference(number)


def test_the_samples_hold_early_and_forced_fills_and_ends_with_and_without_rest() -> None:
    logs = [reference(number) for number in range(24)]
    lengths = [length for log in logs for length in map(len, _runs(log))]
    assert 15 in lengths
    assert any(0 < length < 15 for length in lengths)
    texts = [len(s.text) + len(s.prompt_text) - s.lead for s in map(Sentence, range(24))]
    assert {*texts} & {5, 10, 15, 20}


def _runs(log: Sequence[int]) -> list[list[int]]:
    """The speech of each block that is over."""
    runs: list[list[int]] = [[]]
    for token in log:
        if token == FILL:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs[:-1]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 23), cuts=st.lists(st.integers(0, 22), max_size=8), eager=st.booleans())
def test_tokens_do_not_depend_on_the_cuts_nor_on_when_they_come(
    number: int, cuts: list[int], eager: bool, strategy: str
) -> None:
    assert tuple(spoken(Sentence(number), cuts, eager=eager)) == reference(number)


def test_speech_begins_before_the_text_is_over_and_rests_where_text_is_lacking(strategy: str) -> None:
    shared, log = engine(), Log()
    sentence = Sentence(0)
    shared.open(sentence.job())
    assert not shared.busy
    shared.feed(0, ids([5, 6, 7, 8]), last=False)
    assert not shared.busy
    assert shared.active == 0
    shared.feed(0, ids([9]), last=False)
    assert shared.busy
    run(shared, log)
    assert 1 < len(log.made[0]) <= 16
    assert log.made[0][-1] == FILL
    assert (shared.active, shared.busy, shared.step()) == (1, False, [])


@pytest.mark.parametrize("number", [4, 8, 9, 14, 16, 19])
def test_another_engine_goes_on_behind_any_token_with_those_there_would_have_been(number: int, strategy: str) -> None:
    whole = reference(number)
    for at in {0, 1, 7, len(whole) // 2, *[at for at, token in enumerate(whole) if token == FILL], len(whole)}:
        done = whole[: min(at, len(whole))]
        rest = spoken(Sentence(number), [3, 11], done=done)
        # Whether a block that was full had been told as over is all the same.
        missing = [FILL] if len(done) < len(whole) and _full(Sentence(number), done) else []
        assert (*done, *missing, *rest) == whole


def _full(sentence: Sentence, done: Sequence[int]) -> bool:
    """Whether a block's last token was made, and `fill` was not noted yet."""
    last = len(done) - 1 - [*reversed(done)].index(FILL) if FILL in done else -1
    begun = len(sentence.prompt) % 15 if last < 0 else 0
    in_block = len(done) - last - 1
    whole = reference(sentence.number)
    return in_block > 0 and begun + in_block == 15 and whole[len(done)] == FILL


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("open"), st.integers(0, 23)),
            st.tuples(st.just("feed"), st.integers(0, 400)),
            st.tuples(st.just("add"), st.integers(100, 112)),
            st.tuples(st.just("cancel"), st.integers(0, 112)),
            st.tuples(st.just("step"), st.integers(1, 12)),
        ),
        min_size=8,
        max_size=50,
    ),
    slots=st.integers(1, 4),
    prefill_tokens=st.sampled_from([64, 128]),
)
def test_whoever_joins_leaves_and_rests_each_gets_what_it_gets_alone(
    actions: list[tuple[str, int]], slots: int, prefill_tokens: int, strategy: str
) -> None:
    shared, log = engine(slots=slots, prefill_tokens=prefill_tokens), Log()
    left: dict[int, int] = {}
    ended: set[int] = set()
    cancelled: set[int] = set()
    used: set[int] = set()

    def feed(number: int, count: int, last: bool) -> None:
        text = Sentence(number).text
        shared.feed(number, text[left[number] : left[number] + count], last=last)
        left[number] += count
        ended.update({number} if last else ())

    for action, number in actions:
        fed = [each for each in left if each not in ended | cancelled]
        if action == "open" and number not in used:
            shared.open(Sentence(number).job())
            used.add(number)
            left[number] = 0
        elif action == "add" and number not in used:
            shared.add(_ordinary(number))
            used.add(number)
        elif action == "feed" and fed:
            each = fed[number % len(fed)]
            count = number // 50
            feed(each, count, left[each] + count >= len(Sentence(each).text))
        elif action == "cancel" and number in used - log.finished - cancelled:
            assert shared.cancel(number)
            cancelled.add(number)
        elif action == "step":
            for _ in range(number):
                log.add(shared.step())
        assert shared.active + shared.free_slots == slots
    for each in left:
        if each not in ended | cancelled:
            feed(each, 100, True)
    run(shared, log)
    assert log.finished == used - cancelled
    for number in log.finished:
        assert tuple(log.made[number]) == (reference(number) if number in left else _alone(number))
    assert (shared.active, shared.free_slots, shared.waiting) == (0, slots, 0)


def _ordinary(number: int) -> GenerateJob:
    random = np.random.default_rng(number)
    text = ids(random.integers(0, 50, 1 + number % 5))
    return GenerateJob(number, text, len(text), ids(random.integers(0, 100, number % 30)), number, NONE)


@cache
def _alone(number: int) -> tuple[int, ...]:
    """An ordinary request's tokens, by the strategy of a CPU."""
    shared = engine(slots=1)
    shared.add(_ordinary(number))
    return tuple(run(shared, Log()).made[number])


def test_a_cancelled_one_frees_its_slot_while_it_rests_and_its_key_can_be_used_anew(strategy: str) -> None:
    shared, sentence = engine(slots=1), Sentence(6)
    shared.open(sentence.job())
    shared.feed(6, sentence.text, last=False)
    run(shared, Log())
    assert shared.free_slots == 0
    assert shared.cancel(6)
    assert shared.free_slots == 1
    assert not shared.cancel(6)
    shared.open(sentence.job())
    shared.feed(6, sentence.text, last=True)
    assert tuple(run(shared, Log()).made[6]) == reference(6)


def test_a_block_may_be_of_another_size() -> None:
    shared, log = engine(mix=Mix(2, 3)), Log()
    shared.open(Sentence(0).job())
    shared.feed(0, ids([5, 6]), last=False)
    run(shared, log)
    assert 1 <= len(log.made[0]) <= 4


def test_a_sentence_without_text_ends_without_speech(strategy: str) -> None:
    shared = engine()
    shared.open(Sentence(0).job())
    shared.feed(0, NONE, last=True)
    assert run(shared, Log()).made == {0: []}


def test_a_sentence_that_outgrows_the_cache_ends(strategy: str) -> None:
    shared = engine(slots=1)
    shared.open(LiveJob("long", NONE, NONE, 3, NONE))
    shared.feed("long", np.ones(300, np.int32), last=True)
    log = run(shared, Log())
    assert log.finished == {"long"}
    assert len(log.made["long"]) < MAX_LENGTH
    assert shared.free_slots == 1


def refusals() -> dict[str, Callable[[LLMEngine], None]]:
    return {
        "text": lambda shared: shared.feed("a", ids([600]), last=False),
        "prompt text": lambda shared: shared.open(LiveJob("b", ids([-1]), NONE, 1, NONE)),
        "prompt": lambda shared: shared.open(LiveJob("b", NONE, ids([100]), 1, NONE)),
        "done": lambda shared: shared.open(LiveJob("b", NONE, NONE, 1, ids([-2]))),
        "length": lambda shared: shared.open(LiveJob("b", NONE, np.zeros(MAX_LENGTH, np.int32), 1, NONE)),
    }


@pytest.mark.parametrize("what", refusals())
def test_what_is_none_of_the_model_is_refused(what: str) -> None:
    shared = engine()
    shared.open(LiveJob("a", NONE, NONE, 1, NONE))
    with pytest.raises(InvalidInput):
        refusals()[what](shared)


def test_keys_and_ends_are_kept_apart() -> None:
    shared = engine()
    shared.open(Sentence(1).job())
    with pytest.raises(ValueError, match="already in the engine"):
        shared.open(Sentence(1).job())
    with pytest.raises(KeyError):
        shared.feed(2, ids([1]), last=False)
    shared.feed(1, ids([1]), last=True)
    with pytest.raises(ValueError, match="over already"):
        shared.feed(1, ids([1]), last=False)
