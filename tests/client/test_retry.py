"""When a failed request is sent again: the waiting times, the budget, and what the caller sees of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.client.absence import Absence
from lighttts.client.attempts import Attempts
from lighttts.client.brokers import Brokers
from lighttts.client.events import Arrived, Connect, Deliver, Event, Failed, Finished, Send, Started
from lighttts.client.retry import FIRST_S, LONGEST_S, PER_REQUEST, PER_SECOND, RESERVE, Budget, backoff
from lighttts.client.session import Session
from lighttts.client.stream import Timeouts
from lighttts.errors import Cancelled, LightTTSError, Unavailable
from lighttts.transport.wire import Accepted, Cancel, Credit, End, Error, Hello, Message, Synth, Welcome, encode
from tests.client.fake_broker import RATE, frame_of

SYNTH = Synth("r1", "Hello.", "heart", "", 7, 1.0, "audio", "f32", 0, 0, b"")
CONNECT_S = 5.0
WELCOME = Welcome("b", "b/1", 20_000, 256)


def error(request_id: str, code: str = "overloaded", *, retryable: bool = True, retry_after_ms: int = 0) -> Error:
    return Error(request_id, code, "because", "", retryable, retry_after_ms)


class Bench:
    """Attempts at a session, their clock, and what came out; each wait is as long as it can be."""

    def __init__(self, *, chance: float = 1.0) -> None:
        self.now = 100.0
        there = ["tcp://there:1"]
        timeouts = Timeouts(connect=CONNECT_S, chunk=60.0)
        self.session = Session(Brokers(there, CONNECT_S, self.now), Absence(there), timeouts, Hello("test", "test/1"))
        self.attempts = Attempts(self.session, Budget(self.now), lambda: chance)
        self.sent: list[Message] = []
        self.events: dict[str | int, list[Event]] = {}
        self.connect()

    def open(self, retries: int, request: Synth = SYNTH) -> None:
        self.attempts.open(request, retries, self.now)
        self._collect()

    def receive(self, *messages: Message) -> None:
        for message in messages:
            self.session.received(encode(message), self.now)
            self._collect()

    def cancel(self) -> None:
        self.attempts.cancel("r1", self.now)
        self._collect()

    def lose_connection(self) -> None:
        self.session.disconnected(self.now)
        self._collect()

    def connect(self) -> None:
        self.session.connection.made(self.now)
        self.receive(WELCOME)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := min(self.attempts.next_due(), self.session.next_due())) <= end:
            self.now = max(self.now, due)
            self.attempts.tick(self.now)
            self.session.tick(self.now)
            self._collect()
        self.now = end

    def asked(self) -> list[Synth]:
        """The requests sent since the last call."""
        sent, self.sent = self.sent, []
        return [message for message in sent if isinstance(message, Synth)]

    def outcome(self, key: str = "r1") -> LightTTSError:
        """The one error that ended a request."""
        *before, last = self.events[key]
        assert isinstance(last, Failed)
        assert not any(isinstance(event, Failed | Finished) for event in before)
        return last.error

    def _collect(self) -> None:
        for instruction in self.attempts.take(self.now):
            if isinstance(instruction, Send):
                self.sent.append(instruction.message)
            elif isinstance(instruction, Connect):
                self.session.connection.opened()
            else:
                assert isinstance(instruction, Deliver)
                self.events.setdefault(instruction.key, []).append(instruction.event)


# ---- waiting ----


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1000), st.floats(0, 1))
def test_a_wait_is_at_least_what_the_error_asks_for_and_at_most_the_longest_beyond_it(
    retry: int, retry_after: float | None, chance: float
) -> None:
    wait = backoff(retry, retry_after, chance)
    assert (retry_after or 0) <= wait <= (retry_after or 0) + LONGEST_S


def test_waits_double_up_to_the_longest_and_are_drawn_from_all_of_it() -> None:
    assert [backoff(retry, None, 1.0) for retry in (1, 2, 3)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert backoff(100, None, 1.0) == LONGEST_S
    assert backoff(3, None, 0.0) == 0.0
    assert backoff(3, 2.0, 0.25) == 2.0 + FIRST_S


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=300))
def test_retries_are_a_tenth_of_the_requests_beyond_the_reserve_and_what_time_gives(
    course: list[tuple[bool, float]],
) -> None:
    now = began = 1000.0
    budget, requests, retries = Budget(now), 0, 0
    for begins, pause in course:
        now += pause
        if begins:
            budget.earn(now)
            requests += 1
        else:
            retries += budget.spend(now)
        assert retries <= RESERVE + requests * PER_REQUEST + (now - began) * PER_SECOND + 1e-6


def test_an_empty_budget_fills_again() -> None:
    budget = Budget(0.0)
    assert [budget.spend(0.0) for _ in range(11)] == [True] * 10 + [False]
    for _ in range(11):
        budget.earn(0.0)
    assert [budget.spend(0.0) for _ in range(2)] == [True, False]
    assert [budget.spend(10.5) for _ in range(2)] == [True, False]


# ---- trying again ----


def test_a_request_that_fails_is_sent_again_under_an_id_of_its_own_and_the_caller_sees_one_request() -> None:
    bench = Bench()
    bench.open(3)
    bench.receive(Accepted("r1", RATE), error("r1", "worker_failed"))
    (first,) = bench.asked()
    bench.pass_time(FIRST_S)
    (again,) = bench.asked()
    assert again == replace(first, request_id="r1.1")
    frame = frame_of(again, 0)
    bench.receive(Accepted("r1.1", RATE), frame, End("r1.1", 1, 25, 1))
    *started, arrived, finished = bench.events["r1"]
    assert started == [Started(RATE)] * 2
    assert isinstance(arrived, Arrived)
    np.testing.assert_array_equal(arrived.chunk, frame.samples)
    assert finished == Finished(25)
    assert list(bench.events) == ["r1"]
    bench.pass_time(1000)
    assert bench.asked() == []


def test_without_retries_the_first_error_is_the_last() -> None:
    bench = Bench()
    bench.open(0)
    bench.receive(error("r1"))
    assert bench.outcome().code == "overloaded"
    bench.pass_time(1000)
    assert len(bench.asked()) == 1


def test_the_last_error_is_told_when_the_tries_are_used_up() -> None:
    bench = Bench()
    bench.open(2)
    for name, code in (("r1", "overloaded"), ("r1.1", "no_worker"), ("r1.2", "worker_failed")):
        bench.receive(error(name, code))
        bench.pass_time(LONGEST_S)
    assert bench.outcome().code == "worker_failed"
    assert [request.request_id for request in bench.asked()] == ["r1", "r1.1", "r1.2"]


def test_the_time_the_error_asks_for_is_waited() -> None:
    bench = Bench(chance=0.0)
    bench.open(1)
    bench.receive(error("r1", retry_after_ms=7000))
    bench.asked()
    bench.pass_time(6.9)
    assert bench.asked() == []
    bench.pass_time(0.1)
    assert [request.request_id for request in bench.asked()] == ["r1.1"]


def test_what_cannot_succeed_is_not_tried_again() -> None:
    bench = Bench()
    bench.open(3)
    bench.receive(error("r1", "invalid_input", retryable=False))
    assert bench.outcome().code == "invalid_input"


def test_nothing_is_tried_again_once_a_chunk_was_handed_over() -> None:
    bench = Bench()
    bench.open(3)
    bench.receive(Accepted("r1", RATE), frame_of(SYNTH, 0), error("r1", "worker_failed"))
    assert bench.outcome().code == "worker_failed"
    bench.pass_time(1000)
    assert len(bench.asked()) == 1


def test_the_deadline_is_that_of_all_attempts_together() -> None:
    bench = Bench()
    bench.open(9, replace(SYNTH, deadline_ms=2000))
    bench.receive(error("r1"))
    bench.pass_time(FIRST_S)
    (_, again) = bench.asked()
    assert again.deadline_ms == 1500
    bench.receive(error("r1.1", retry_after_ms=1600))
    assert bench.outcome().code == "overloaded"


def test_a_request_that_nobody_knows_after_a_lost_connection_is_sent_again() -> None:
    bench = Bench()
    bench.open(1)
    bench.receive(Accepted("r1", RATE))
    bench.lose_connection()
    bench.pass_time(FIRST_S)
    assert [request.request_id for request in bench.asked()] == ["r1"]
    bench.connect()
    bench.receive(error("r1", code="unknown_request"))
    bench.pass_time(FIRST_S + 1.0)
    assert [request.request_id for request in bench.asked()] == ["r1.1"]
    bench.lose_connection()
    bench.pass_time(CONNECT_S)
    assert isinstance(bench.outcome(), Unavailable)


def test_cancelling_between_two_attempts_ends_the_request() -> None:
    bench = Bench()
    bench.open(3)
    bench.receive(error("r1"))
    for _ in range(2):
        bench.cancel()
    bench.pass_time(1000)
    assert isinstance(bench.outcome(), Cancelled)
    assert len(bench.asked()) == 1


def test_cancelling_and_reading_reach_the_attempt_that_is_on() -> None:
    bench = Bench()
    bench.open(1)
    bench.receive(error("r1"))
    bench.pass_time(FIRST_S)
    bench.receive(
        Accepted("r1.1", RATE), *(frame_of(replace(SYNTH, request_id="r1.1"), number) for number in range(16))
    )
    for _ in range(16):
        bench.attempts.consumed("r1", bench.now)
    bench.cancel()
    assert bench.sent[-2:] == [Credit("r1.1", 16), Cancel("r1.1")]
    assert isinstance(bench.outcome(), Cancelled)


def test_all_requests_of_a_client_share_one_budget() -> None:
    bench = Bench()
    for number in range(20):
        bench.open(1, replace(SYNTH, request_id=f"q{number}"))
    for number in range(20):
        bench.receive(error(f"q{number}"))
    failed = [key for key, events in bench.events.items() if isinstance(events[-1], Failed)]
    assert len(failed) == 10


def test_requests_that_succeed_fill_the_budget_again() -> None:
    bench = Bench()
    for number in range(10):
        bench.open(1, replace(SYNTH, request_id=f"q{number}"))
    for number in range(10):
        bench.receive(error(f"q{number}"))
    assert not bench.events
    for number in range(22):
        bench.open(2, replace(SYNTH, request_id=f"s{number}"))
    for number in range(22):
        bench.receive(error(f"s{number}"))
    assert len(bench.events) == 20


@settings(max_examples=200)
@given(
    retries=st.integers(0, 4),
    course=st.lists(
        st.sampled_from(["accept", "frame", "end", "overloaded", "invalid_input", "cancel", "disconnect", "time"]),
        max_size=25,
    ),
)
def test_whatever_happens_the_caller_gets_a_gapless_prefix_and_one_last_event(retries: int, course: list[str]) -> None:
    bench = Bench()
    bench.open(retries)
    current, frames, accepted = "r1", 0, False
    for what in course:
        for request in bench.asked():
            current, frames, accepted = request.request_id, 0, False
        match what:
            case "accept" if not accepted:
                accepted = True
                bench.receive(Accepted(current, RATE))
            case "frame" if accepted:
                bench.receive(frame_of(replace(SYNTH, request_id=current), frames))
                frames += 1
            case "end" if accepted:
                bench.receive(End(current, frames, 25 * frames, 1))
            case "overloaded" | "invalid_input":
                bench.receive(error(current, what, retryable=what == "overloaded"))
            case "cancel":
                bench.cancel()
            case "disconnect":
                bench.lose_connection()
                bench.connect()
            case "time":
                bench.pass_time(20.0)
    bench.session.close(bench.now)
    bench.cancel()
    events = bench.events["r1"]
    chunks = [event.chunk for event in events if isinstance(event, Arrived)]
    for number, chunk in enumerate(chunks):
        np.testing.assert_array_equal(chunk, frame_of(SYNTH, number).samples)
    assert [isinstance(event, Failed | Finished) for event in events] == [False] * (len(events) - 1) + [True]
    assert bench.attempts.next_due() == float("inf")
