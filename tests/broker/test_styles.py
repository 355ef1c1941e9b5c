"""Several language models: a request goes to an llm worker that answers to its style."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from lighttts.transport import wire
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, encoded, synth

ALIVE = [(b"encode-1", 1), (b"decode-2", 2), (b"calm", 10), (b"lively", 11)]


def join(harness: Harness, epoch: int, *styles: str, credit: int = 1) -> list[wire.Message]:
    """An llm worker that answers to `styles`; returns the work it gets."""
    identity = styles[-1].encode()
    hello = wire.Register(styles[-1], epoch, "llm", "", "", SAMPLE_RATE, (), styles)
    return harness.control(identity, hello, wire.Grant(epoch, credit))[1:]


def given(harness: Harness, worker: bytes) -> list[str]:
    return [message.request_id for message in harness.take(worker) if isinstance(message, wire.GenerateWork)]


def ask(harness: Harness, *wishes: tuple[str, str]) -> None:
    """Encoded requests, by id and style."""
    for request_id, style in wishes:
        harness.say(synth(request_id, style=style))
        harness.result(encoded(request_id, 1))
        harness.control(b"encode-1", wire.Grant(1, 1))


def errors(messages: Iterable[wire.Message]) -> list[wire.Error]:
    return [message for message in messages if isinstance(message, wire.Error)]


@pytest.fixture
def harness() -> Harness:
    harness = Harness()
    harness.worker("encode", 1)
    harness.worker("decode", 2)
    return harness


def test_a_request_goes_to_a_worker_of_its_style(harness: Harness) -> None:
    join(harness, 10, "", "calm")
    join(harness, 11, "lively")
    ask(harness, ("a", "lively"), ("b", "calm"))
    assert (given(harness, b"calm"), given(harness, b"lively")) == (["b"], ["a"])


def test_without_a_style_it_goes_to_the_default(harness: Harness) -> None:
    join(harness, 11, "lively")
    join(harness, 10, "", "calm")
    ask(harness, ("a", ""))
    assert (given(harness, b"calm"), given(harness, b"lively")) == (["a"], [])


def test_what_waits_for_one_style_holds_up_no_other(harness: Harness) -> None:
    join(harness, 10, "", "calm", credit=1)
    join(harness, 11, "lively", credit=2)
    ask(harness, ("a", ""), ("b", ""), ("c", "lively"), ("d", "lively"))
    assert (given(harness, b"calm"), given(harness, b"lively")) == (["a"], ["c", "d"])


def test_the_default_and_its_name_wait_in_one_line(harness: Harness) -> None:
    join(harness, 10, "", "calm", credit=0)
    ask(harness, ("a", "calm"), ("b", ""), ("c", "calm"), ("d", ""))
    order = []
    for _ in range(4):
        order += [work.request_id for work in harness.control(b"calm", wire.Grant(10, 1))]  # type: ignore[attr-defined]
    assert order == ["a", "b", "c", "d"]


def test_a_style_that_nobody_has_is_refused_at_once(harness: Harness) -> None:
    join(harness, 10, "", "calm")
    harness.pass_time(harness.settings.no_worker_s, alive=ALIVE)
    (error,) = errors(harness.say(synth(style="angry")))
    assert (error.code, error.field) == ("invalid_input", "style")
    assert "the styles here are calm" in error.text


def test_a_broker_that_has_just_begun_waits_for_the_style(harness: Harness) -> None:
    ask(harness, ("a", "lively"))
    assert [work.request_id for work in join(harness, 11, "lively")] == ["a"]  # type: ignore[attr-defined]


def test_a_style_whose_workers_are_gone_ends_like_a_stage_without_workers(harness: Harness) -> None:
    join(harness, 10, "", "calm")
    join(harness, 11, "lively")
    harness.control(b"lively", wire.Bye(11))
    ask(harness, ("a", "lively"))
    harness.take(CLIENT)
    harness.pass_time(harness.settings.no_worker_s + 1, alive=ALIVE[:3])
    (error,) = errors(harness.take(CLIENT))
    assert (error.code, error.retryable) == ("no_worker", True)
    assert "'lively'" in error.text
