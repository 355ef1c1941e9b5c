"""Continuous batching: a request's tokens are its own, whoever else is in the batch and whenever they come and go."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighttts.engine import llm
from lighttts.engine.kv_cache import KVCache
from lighttts.engine.llm import GenerateJob, LLMEngine, TokenStep
from lighttts.engine.llm_alone import CPU_ROWS
from lighttts.engine.llm_batched import BatchedSteps, decode_rows, prefill_rows
from lighttts.errors import InvalidInput
from lighttts.metrics import resident_bytes
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import SpeechLM, Vocabulary, load_llm
from lighttts.models.qwen2 import Qwen2Config
from lighttts.models.sampling import Sampling, sample
from tests.talkative import talkative

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
SLOTS = 5
MAX_LENGTH = 160


@cache
def tiny() -> SpeechLM:
    return load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), torch.device("cpu"))


@cache
def middling() -> SpeechLM:
    """A model whose matrices are large enough for the CPU's library to treat batch sizes differently."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocabulary=50, width=256, inner=512, layers=2, heads=4, kv_heads=2, head_width=64, norm_epsilon=1e-6,
        rope_theta=1e6, init_std=0.08,
    )  # fmt: skip
    vocabulary = Vocabulary(text=50, task=2, speech=1500, stops=3, sos=50, task_id=51, end_of_speech=1500, fill=1502)
    return SpeechLM(config, vocabulary, Sampling(top_p=0.8, top_k=25, win_size=10, tau_r=0.1)).eval()


def engine(model: SpeechLM | None = None, *, slots: int = SLOTS, prefill_tokens: int = 64) -> LLMEngine:
    return LLMEngine(model or tiny(), slots=slots, max_length=MAX_LENGTH, prefill_tokens=prefill_tokens)


def job(
    key: Hashable,
    *,
    text: Iterable[int] = (5, 6, 7, 8),
    prompt: Iterable[int] = (),
    prompt_text: Iterable[int] = (),
    seed: int = 3,
    done: Iterable[int] = (),
) -> GenerateJob:
    text, prompt_text = list(text), list(prompt_text)
    return GenerateJob(
        key=key,
        text=np.array(prompt_text + text, np.int32),
        text_tokens=len(text),
        prompt_tokens=np.array(list(prompt), np.int32),
        seed=seed,
        done_tokens=np.array(list(done), np.int32),
    )


def collect(steps: Iterable[TokenStep], into: dict[Hashable, list[int]], finished: set[Hashable]) -> None:
    for step in steps:
        assert step.key not in finished
        into.setdefault(step.key, []).extend(step.tokens)
        if step.finished:
            finished.add(step.key)


def run(engine: LLMEngine, jobs: Iterable[GenerateJob]) -> dict[Hashable, list[int]]:
    """The tokens of `jobs`, added at once, by key."""
    made: dict[Hashable, list[int]] = {}
    finished: set[Hashable] = set()
    for each in jobs:
        engine.add(each)
    while engine.busy:
        collect(engine.step(), made, finished)
    assert finished == made.keys()
    return made


def solo(each: GenerateJob, model: SpeechLM | None = None) -> list[int]:
    return run(engine(model), [each])[each.key]


def varied(number: int) -> GenerateJob:
    """One of many jobs that differ in text, prompt and length."""
    random = np.random.default_rng(number)
    return job(
        number,
        text=random.integers(0, 50, 1 + number % 5),
        prompt_text=random.integers(0, 50, number % 3),
        prompt=random.integers(0, 100, 7 * number % 40),
        seed=number * 7919,
    )


@cache
def solo_of(number: int) -> tuple[int, ...]:
    return tuple(solo(varied(number)))


@cache
def solo_runs() -> dict[int, tuple[int, ...]]:
    """Of requests 0 to 20, by the strategy of a CPU."""
    return {number: solo_of(number) for number in range(21)}


class TestGeneration:
    def reference(self, model: SpeechLM, each: GenerateJob) -> list[int]:
        """Upstream's loop: the whole sequence anew for each token, no cache, no batch."""
        made: list[int] = []
        while len(made) < 20 * each.text_tokens:
            ids = model.vocabulary.sequence(each.text, [*each.prompt_tokens, *made])
            with torch.no_grad():
                logits = model(model.embed(torch.from_numpy(ids)[None]))[:, -1]
            if len(made) < 2 * each.text_tokens:
                logits[:, model.vocabulary.end_of_speech] = -torch.inf
            window = torch.tensor([([-1] * 10 + made)[-10:]])
            seed, step = torch.tensor([each.seed]), torch.tensor([len(made)])
            token = int(sample(logits, window, seed, step, model.sampling))
            if token >= model.vocabulary.speech:
                break
            made.append(token)
        return made

    @pytest.mark.parametrize("number", range(8))
    def test_tokens_are_those_of_the_plain_loop(self, number: int) -> None:
        assert list(solo_of(number)) == self.reference(tiny(), varied(number))

    def test_generation_ends_with_a_stop_token_which_is_not_emitted(self) -> None:
        made = run(engine(slots=20), [job(n, seed=n) for n in range(20)])
        assert any(8 <= len(tokens) < 80 for tokens in made.values())
        assert all(0 <= token < 100 for tokens in made.values() for token in tokens)

    def test_the_end_of_speech_is_not_drawn_before_the_minimum(self) -> None:
        eager = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), torch.device("cpu"))
        with torch.no_grad():
            eager.llm_decoder.bias[eager.vocabulary.end_of_speech] = 50.0
        assert len(solo(job("a", text=range(9)), eager)) == 18

    @pytest.mark.parametrize("extra", [1, 2])
    def test_the_other_stop_tokens_end_speech_at_any_time(self, extra: int) -> None:
        eager = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), torch.device("cpu"))
        with torch.no_grad():
            eager.llm_decoder.bias[eager.vocabulary.end_of_speech + extra] = 50.0
        assert solo(job("a", text=range(9)), eager) == []

    def endless(self) -> SpeechLM:
        model = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), torch.device("cpu"))
        with torch.no_grad():
            model.llm_decoder.bias[model.vocabulary.speech :] = -1e9
        return model

    def test_speech_ends_at_its_maximum_for_the_text_without_the_prompt(self) -> None:
        assert len(solo(job("a", text=range(3), prompt_text=range(4), prompt=range(20)), self.endless())) == 60

    def test_speech_ends_at_the_end_of_the_cache(self) -> None:
        each = job("a", text=range(30), prompt=range(50))
        assert len(solo(each, self.endless())) == MAX_LENGTH - (1 + 30 + 1 + 50) + 1

    def test_without_text_there_is_no_speech(self) -> None:
        assert run(engine(), [job("a", text=(), prompt_text=(1, 2))]) == {"a": []}

    def test_each_step_gives_one_token_a_request(self) -> None:
        busy = engine()
        for key in range(3):
            busy.add(job(key))
        steps = busy.step()
        assert [step.key for step in steps] == [0, 1, 2]
        assert all(len(step.tokens) == 1 and not step.finished for step in steps)

    def test_seeds_of_any_size_differ(self) -> None:
        seeds = [0, 1, -1, 2**63, 2**64 - 2, 2**70 + 5]
        made = run(engine(slots=6), [job(seed, seed=seed) for seed in seeds])
        assert len({tuple(tokens) for tokens in made.values()}) == len(seeds)


class TestBatching:
    @settings(deadline=None, max_examples=25)
    @given(
        actions=st.lists(
            st.one_of(st.integers(0, 30).map(lambda n: ("add", n)), st.integers(0, 30).map(lambda n: ("cancel", n)),
                      st.integers(1, 12).map(lambda n: ("step", n))),
            min_size=5, max_size=40,
        ),
        slots=st.integers(1, 6),
    )  # fmt: skip
    def test_tokens_do_not_depend_on_who_joins_leaves_or_is_cancelled(self, actions, slots) -> None:
        shared = engine(slots=slots)
        made: dict[Hashable, list[int]] = {}
        finished: set[Hashable] = set()
        inside: set[int] = set()
        cancelled: set[int] = set()
        for action, number in [*actions, ("step", 10_000)]:
            if action == "add" and number not in inside | cancelled:
                shared.add(varied(number))
                inside.add(number)
            elif action == "cancel":
                running = number in inside - cancelled - finished
                assert shared.cancel(number) is running
                cancelled |= {number} if running else set()
            elif action == "step":
                while number and shared.busy:
                    steps = shared.step()
                    assert not cancelled & {step.key for step in steps}
                    collect(steps, made, finished)
                    number -= 1
            assert shared.active + shared.free_slots == slots
        assert finished == inside - cancelled
        for number in finished:
            assert tuple(made[number]) == solo_of(number)
        for number in cancelled & made.keys():
            assert tuple(made[number]) == solo_of(number)[: len(made[number])]

    def test_fifty_requests_at_once_each_equal_their_solo_run(self) -> None:
        jobs = [varied(number) for number in range(50)]
        made = run(engine(slots=50), jobs)
        assert {number: tuple(tokens) for number, tokens in made.items()} == {n: solo_of(n) for n in range(50)}

    def test_logits_in_a_batch_equal_those_alone_bit_for_bit(self) -> None:
        model = middling()
        jobs = [job(n, text=range(1 + n % 7), prompt=range(3 * n), seed=n) for n in range(11)]

        def logits_of(jobs: list[GenerateJob], steps: int) -> set[bytes]:
            rows: set[bytes] = set()
            real = min(len(jobs), CPU_ROWS)  # the rows after that are padding
            hook = model.llm_decoder.register_forward_hook(
                lambda module, inputs, output: rows.update(row.numpy().tobytes() for row in output[:real])
            )
            running = engine(model, slots=11)
            for each in jobs:
                running.add(each)
            for _ in range(steps):
                running.step()
            hook.remove()
            return rows

        together = logits_of(jobs, 30)
        for each in jobs:
            assert logits_of([each], 12) <= together

    def test_a_resumed_request_goes_on_as_it_would_have(self) -> None:
        for number in range(12):
            whole = solo_of(number)
            for at in {0, 1, len(whole) // 2, max(len(whole) - 1, 0), len(whole)}:
                first = varied(number)
                rest = GenerateJob(first.key, first.text, first.text_tokens, first.prompt_tokens, first.seed,
                                   np.array(whole[:at], np.int32))  # fmt: skip
                assert (*whole[:at], *solo(rest)) == whole

    def test_a_slot_keeps_nothing_of_the_request_before(self) -> None:
        shared = engine(slots=1)
        for number in (7, 1, 9, 3):
            assert tuple(run(shared, [varied(number)])[number]) == solo_of(number)


class TestBatchedSteps:
    """The strategy of a GPU, run here on the CPU: one batch for all requests, read back one step later."""

    @pytest.fixture(autouse=True)
    def _gpu_strategy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        solo_runs()
        monkeypatch.setattr(llm, "_steps", BatchedSteps)

    def drive(
        self, shared: LLMEngine, actions: Iterable[tuple[str, int]]
    ) -> tuple[dict[Hashable, list[int]], set[int]]:
        """What was made of those that were not cancelled, and who was."""
        made: dict[Hashable, list[int]] = {}
        finished: set[Hashable] = set()
        cancelled: set[int] = set()
        inside: set[int] = set()
        for action, number in [*actions, ("step", 10_000)]:
            if action == "add" and number not in inside:
                shared.add(varied(number))
                inside.add(number)
            elif action == "cancel" and shared.cancel(number):
                cancelled.add(number)
            elif action == "step":
                while number and shared.busy:
                    steps = shared.step()
                    assert not cancelled & {step.key for step in steps}
                    collect(steps, made, finished)
                    number -= 1
        assert finished == inside - cancelled
        return {key: made[key] for key in finished}, cancelled

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        actions=st.lists(
            st.one_of(st.integers(0, 20).map(lambda n: ("add", n)), st.integers(0, 20).map(lambda n: ("cancel", n)),
                      st.integers(1, 12).map(lambda n: ("step", n))),
            min_size=5, max_size=30,
        ),
        slots=st.integers(1, 6),
        prefill_tokens=st.sampled_from([16, 40, 300]),
    )  # fmt: skip
    def test_tokens_are_those_of_the_solo_run_whoever_joins_leaves_or_is_cancelled(
        self, actions, slots, prefill_tokens
    ) -> None:
        expected = solo_runs()
        made, _ = self.drive(engine(slots=slots, prefill_tokens=prefill_tokens), actions)
        assert {number: tuple(tokens) for number, tokens in made.items()} == {n: expected[n] for n in made}

    def test_tokens_come_one_call_after_their_step_is_launched(self) -> None:
        shared = engine()
        shared.add(job("a"))
        assert shared.step() == []
        assert [step.key for step in shared.step()] == ["a"]

    def test_a_request_cancelled_while_its_step_runs_gives_its_slot_to_another(self) -> None:
        expected = solo_runs()[2]
        shared = engine(slots=1)
        shared.add(varied(1))
        shared.step()
        assert shared.cancel(1)
        shared.add(varied(2))
        made, finished = {}, set()
        while shared.busy:
            collect(shared.step(), made, finished)
        assert made == {2: list(expected)}

    def test_a_key_cancelled_while_its_step_runs_can_be_used_anew(self) -> None:
        shared = engine(slots=2)
        shared.add(job("a", seed=1))
        shared.step()
        shared.cancel("a")
        assert run(shared, [job("a", seed=2)]) == run(engine(slots=2), [job("a", seed=2)])

    def test_a_long_prompt_is_prefilled_in_parts_while_others_decode(self) -> None:
        long, short = job("long", prompt=range(70)), job("short")
        expected = {each.key: run(engine(prefill_tokens=300), [each])[each.key] for each in (long, short)}
        shared = engine(prefill_tokens=16)
        shared.add(short)
        shared.add(long)
        made: dict[Hashable, list[int]] = {}
        finished: set[Hashable] = set()
        for _ in range(6):
            collect(shared.step(), made, finished)
        assert len(made["short"]) == 5
        assert "long" not in made
        while shared.busy:
            collect(shared.step(), made, finished)
        assert made == expected

    def test_a_request_cancelled_in_the_middle_of_its_prefill_leaves_its_place_to_the_next(self) -> None:
        expected = solo_runs()[3]
        shared = engine(slots=1, prefill_tokens=16)
        shared.add(job("long", prompt=range(70)))
        shared.step()
        assert shared.cancel("long")
        assert tuple(run(shared, [varied(3)])[3]) == expected

    def test_a_step_has_the_fewest_rows_that_hold_the_requests(self) -> None:
        assert decode_rows(1) == [1]
        assert decode_rows(20) == [1, 2, 4, 8, 16, 20]
        assert decode_rows(400) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 400]
        assert prefill_rows(50) == [64]
        assert prefill_rows(300) == [128, 256, 304]
        assert prefill_rows(10_000) == [128, 256, 512, 1024, 2048]


class TestCosyVoice3:
    """The same engine serves it: the vocabulary alone knows that its ids lie elsewhere."""

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> SpeechLM:
        folder = talkative(tmp_path_factory.mktemp("cosyvoice3") / "model")
        return load_llm(ModelDirectory.open(folder), torch.device("cpu"))

    @pytest.fixture(scope="module")
    @classmethod
    def alone(cls, model: SpeechLM) -> dict[int, list[int]]:
        return {number: solo(varied(number), model) for number in range(16)}

    def test_tokens_are_those_of_the_plain_loop(self, model, alone) -> None:
        assert len({len(tokens) for tokens in alone.values()}) > 4
        for number, tokens in alone.items():
            assert tokens == TestGeneration().reference(model, varied(number))

    @pytest.mark.parametrize("steps", [llm.AloneSteps, BatchedSteps])
    def test_tokens_do_not_depend_on_who_joins_or_leaves(self, model, alone, steps, monkeypatch) -> None:
        if steps is BatchedSteps:
            monkeypatch.setattr(llm, "_steps", BatchedSteps)
        shared = engine(model, slots=3)
        made: dict[Hashable, list[int]] = {}
        finished: set[Hashable] = set()
        for number in alone:
            shared.add(varied(number))
            collect(shared.step(), made, finished)
            if number % 5 == 4:
                shared.cancel(number)
        while shared.busy:
            collect(shared.step(), made, finished)
        assert finished >= {number for number in alone if number % 5 != 4}
        assert {number: made[number] for number in finished} == {number: alone[number] for number in finished}

    def test_each_of_its_stop_tokens_ends_speech(self) -> None:
        model = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice3-tiny"), torch.device("cpu"))
        for stop in (100, 102, 199, 299):
            bias = torch.zeros(300)
            bias[stop] = 50.0
            model.llm_decoder.bias = torch.nn.Parameter(bias, requires_grad=False)
            assert solo(job("a", text=range(9)), model) == []

    def test_the_end_of_speech_is_not_drawn_before_the_minimum(self) -> None:
        eager = load_llm(ModelDirectory.open(GOLDEN / "cosyvoice3-tiny"), torch.device("cpu"))
        bias = torch.full((300,), -50.0)
        bias[:100], bias[eager.vocabulary.end_of_speech] = 0.0, 50.0
        eager.llm_decoder.bias = torch.nn.Parameter(bias, requires_grad=False)
        assert len(solo(job("a", text=range(9), prompt_text=range(30)), eager)) == 18


class TestQueue:
    def test_requests_wait_for_a_slot_and_are_served_in_order(self) -> None:
        shared = engine(slots=2)
        for number in range(5):
            shared.add(varied(number))
        assert (shared.active, shared.waiting, shared.free_slots, shared.busy) == (0, 5, 2, True)
        assert {step.key for step in shared.step()} == {0, 1}
        assert (shared.active, shared.waiting, shared.free_slots) == (2, 3, 0)

    def test_a_step_prefills_within_its_budget_and_always_one_request(self) -> None:
        shared = engine(slots=5, prefill_tokens=50)
        lengths = {"long": 60, "a": 10, "b": 12, "c": 14, "d": 3}
        for key, length in lengths.items():
            shared.add(job(key, text=range(4), prompt=range(length)))
        first, second, third = ({step.key for step in shared.step()} for _ in range(3))
        assert first == {"long"}
        assert second == {"long", "a", "b"}
        assert third == {"long", "a", "b", "c", "d"}

    def test_a_cancelled_request_frees_its_slot_before_the_next_step(self) -> None:
        shared = engine(slots=1)
        shared.add(varied(1))
        shared.add(varied(2))
        shared.step()
        assert shared.cancel(1)
        assert shared.free_slots == 1
        assert {step.key for step in shared.step()} == {2}
        assert not shared.cancel(1)

    def test_a_waiting_request_can_be_cancelled(self) -> None:
        shared = engine(slots=1)
        shared.add(varied(1))
        assert shared.cancel(1)
        assert not shared.busy
        assert shared.step() == []

    def test_a_finished_request_leaves_nothing_behind(self) -> None:
        shared = engine()
        run(shared, [varied(number) for number in range(9)])
        assert (shared.active, shared.waiting, shared.free_slots, shared.busy) == (0, 0, SLOTS, False)
        assert not shared.cancel(3)
        shared.add(varied(3))

    def test_a_key_is_used_once_at_a_time(self) -> None:
        shared = engine()
        shared.add(varied(1))
        with pytest.raises(ValueError, match="already in the engine"):
            shared.add(varied(1))
        shared.step()
        with pytest.raises(ValueError, match="already in the engine"):
            shared.add(varied(1))

    @pytest.mark.parametrize(
        "bad",
        [
            job("x", text=[600]),
            job("x", text=[-1]),
            job("x", prompt=[100]),
            job("x", done=[-1]),
            job("x", text=[1] * 60),
            job("x", prompt=range(1), prompt_text=[1] * 200),
        ],
        ids=["text id", "negative id", "prompt id", "done id", "no room for the minimum", "no room for the prompt"],
    )
    def test_a_job_that_can_never_run_is_refused(self, bad: GenerateJob) -> None:
        shared = engine()
        with pytest.raises(InvalidInput) as caught:
            shared.add(bad)
        assert caught.value.text.endswith(".")
        assert not shared.busy

    def test_the_longest_job_that_fits_runs(self) -> None:
        each = job("x", text=[1] * 40, prompt=[2] * (MAX_LENGTH + 1 - 80 - 42))
        assert len(solo(each, TestGeneration().endless())) == 80


def test_a_cpus_cache_takes_memory_only_for_what_runs() -> None:
    config = Qwen2Config(9, 256, 9, 4, 4, 4, 64, 1e-6, 1e4, 0.02)
    before = resident_bytes()
    cache = KVCache(config, 32, 4096, torch.device("cpu"), torch.float32)
    reserved = 2 * cache.keys.nbytes
    assert resident_bytes() - before < reserved / 10
    cache.keys[:] = 1
    assert resident_bytes() - before > reserved / 3
    cache.give_back()
    assert resident_bytes() - before < reserved / 10
    assert not cache.keys[0, 0].any()
