"""What one client may ask for, whatever the others do, and when it is told to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.broker.board import Board
from lighttts.broker.pace import LONGEST_S, SHORTEST_S, Pace, retry_after
from lighttts.broker.quota import KEYS_KEPT, Quotas
from lighttts.broker.requests import RequestTable
from lighttts.config import BrokerConfig
from lighttts.errors import Overloaded
from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, synth

NOBODY = RequestTable()
OTHER = b"other"


def refusal(messages: list[Message]) -> wire.Error:
    """The one error among `messages`."""
    (error,) = messages
    assert isinstance(error, wire.Error)
    return error


def allows(quotas: Quotas, client: bytes, now: float) -> bool:
    """Asks for a request, and begins it if it may."""
    try:
        quotas.check(client, NOBODY, Pace(0.0), now)
    except Overloaded:
        return False
    quotas.charge(client, now)
    return True


# ---- at the door ----


def test_a_client_may_have_so_many_requests_at_once_and_others_do_not_notice() -> None:
    harness = Harness(client_requests=2)
    harness.stack()
    harness.say(synth("r1"), synth("r2"))
    error = refusal(harness.say(synth("r3")))
    assert (error.request_id, error.code, error.retryable) == ("r3", "overloaded", True)
    assert "2 requests" in error.text
    assert error.retry_after_ms >= 1000 * SHORTEST_S
    assert harness.say(synth("r4"), client=OTHER) == [wire.Accepted("r4", SAMPLE_RATE)]


def test_a_request_that_has_ended_makes_room_before_it_is_acknowledged() -> None:
    harness = Harness(client_requests=1)
    harness.stack()
    harness.say(synth("r1"), wire.Cancel("r1"))
    assert harness.say(synth("r2")) == [wire.Accepted("r2", SAMPLE_RATE)]


def test_a_client_may_begin_so_many_requests_a_minute_and_is_told_when_it_may_again() -> None:
    harness = Harness(client_requests_per_minute=3)
    harness.stack()
    for number in range(3):
        harness.say(synth(f"r{number}"), wire.Cancel(f"r{number}"), wire.EndAck(f"r{number}"))
    error = refusal(harness.say(synth("r3")))
    assert (error.code, error.retry_after_ms) == ("overloaded", 20_000)
    assert harness.say(synth("r4"), client=OTHER) == [wire.Accepted("r4", SAMPLE_RATE)]
    harness.now += error.retry_after_ms / 1000
    assert harness.say(synth("r3")) == [wire.Accepted("r3", SAMPLE_RATE)]
    assert refusal(harness.say(synth("r5"))).code == "overloaded"


def test_a_refused_request_costs_nothing() -> None:
    harness = Harness(client_requests_per_minute=1)
    harness.stack()
    for _ in range(5):
        assert refusal(harness.say(synth(text=""))).code == "invalid_input"
    assert harness.say(synth()) == [wire.Accepted("r1", SAMPLE_RATE)]


def test_a_full_broker_says_when_there_will_be_room_by_the_pace_at_which_requests_end() -> None:
    harness = Harness(max_requests=1, deadline_s=1000, no_worker_s=1000)
    harness.say(synth("first"))
    harness.pass_time(10)
    harness.take(CLIENT)
    assert refusal(harness.say(synth("x"))).retry_after_ms == 10_000
    harness.say(wire.Cancel("first"), wire.EndAck("first"))
    for number in range(9):
        harness.say(synth(f"r{number}"), wire.Cancel(f"r{number}"), wire.EndAck(f"r{number}"))
    harness.say(synth("last"))
    harness.tick(10)
    harness.take(CLIENT)
    assert refusal(harness.say(synth("x"))).retry_after_ms == 2_000


# ---- the bucket ----


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.floats(0, 20)), max_size=200),
)
def test_no_span_of_time_sees_more_than_a_minutes_worth_and_what_fills_up_meanwhile(
    per_minute: int, attempts: list[tuple[bytes, float]]
) -> None:
    quotas, now = Quotas(1, per_minute), 0.0
    begun: dict[bytes, list[float]] = {b"a": [], b"b": []}
    for client, pause in attempts:
        now += pause
        quotas.tick(now)
        if allows(quotas, client, now):
            begun[client].append(now)
    for times in begun.values():
        for first, start in enumerate(times):
            for count, end in enumerate(times[first:], 1):
                assert count <= per_minute + (end - start) * per_minute / 60 + 1e-6


@given(st.integers(1, 50), st.lists(st.floats(0, 10), max_size=100))
def test_who_comes_back_when_told_is_let_in(per_minute: int, pauses: list[float]) -> None:
    quotas, now = Quotas(1, per_minute), 0.0
    for pause in pauses:
        now += pause
        if not allows(quotas, CLIENT, now):
            with pytest.raises(Overloaded) as refused:
                quotas.check(CLIENT, NOBODY, Pace(0.0), now)
            wait = refused.value.retry_after or 0.0
            assert 0 < wait <= 60 / per_minute
            now += wait + 1e-6
            assert allows(quotas, CLIENT, now)


def test_clients_that_ask_for_nothing_are_forgotten() -> None:
    harness = Harness(client_requests_per_minute=60)
    harness.say(synth())
    harness.tick(0.5)
    assert len(harness.core._board.quotas) == 1
    harness.tick(0.5)
    assert len(harness.core._board.quotas) == 0


def test_a_flood_of_new_clients_does_not_fill_the_memory() -> None:
    quotas = Quotas(1, 1)
    for number in range(KEYS_KEPT + 100):
        quotas.charge(b"%d" % number, 0.0)
    assert len(quotas) == KEYS_KEPT
    assert not allows(quotas, b"%d" % (KEYS_KEPT + 99), 0.0)


def test_connections_of_the_same_user_share_a_quota() -> None:
    harness = Harness(client_requests=2)
    board: Board = harness.core._board
    board.quotas = Quotas(2, 100, key=lambda client: client[:4])
    harness.stack()
    harness.say(synth("r1"), client=b"anna1")
    harness.say(synth("r2"), client=b"anna2")
    assert refusal(harness.say(synth("r3"), client=b"anna3")).code == "overloaded"
    assert harness.say(synth("r4"), client=b"bob 1") == [wire.Accepted("r4", SAMPLE_RATE)]


# ---- the pace ----


@pytest.mark.parametrize(
    ("ended", "seconds", "share", "expected"),
    [
        (10, 30, 1.0, 3.0),
        (10, 30, 0.5, 6.0),
        (1, 4, 1.0, 4.0),
        (0, 4, 1.0, 4.0),
        (0, 0, 1.0, SHORTEST_S),
        (10_000, 30, 1.0, SHORTEST_S),
        (1, 30, 0.01, LONGEST_S),
    ],
)
def test_the_time_to_retry_is_that_until_the_next_request_ends(
    ended: int, seconds: float, share: float, expected: float
) -> None:
    assert retry_after(ended, seconds, share) == pytest.approx(expected)


@given(st.integers(0, 10**9), st.floats(0, 10**6), st.floats(1e-3, 1.0))
def test_the_time_to_retry_is_bounded_and_shorter_the_faster_requests_end(
    ended: int, seconds: float, share: float
) -> None:
    wait = retry_after(ended, seconds, share)
    assert SHORTEST_S <= wait <= LONGEST_S
    assert retry_after(ended + 1, seconds, share) <= wait


def test_only_the_last_half_minute_counts() -> None:
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.tick(1000, float(second))
    for second in range(101, 131):
        pace.tick(1000 + (second - 100) // 5, float(second))
    assert pace.soon(130.0) == pytest.approx(5.0)


def test_the_defaults_leave_an_ordinary_client_alone() -> None:
    settings = BrokerConfig()
    assert settings.client_requests >= 100
    assert settings.client_requests_per_minute >= 1000
