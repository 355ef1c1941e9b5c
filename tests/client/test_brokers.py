"""Which broker of a list has its turn, and for how long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.client.brokers import FIRST_S, LONGEST_S, SHORTEST_S, UNFIT_S, Brokers
from lighttts.errors import ConfigError
from lighttts.transport.endpoints import either, endpoint_list

NAMES = ("a", "b", "c", "d", "e", "f")
CONNECT_S = 5.0
EVENTS = ("ready", "idle", "lost", "silent", "unfit", "mismatched", "tick")


def listed(count: int, now: float = 0.0, first: int = 0, connect_s: float = CONNECT_S) -> Brokers:
    return Brokers(NAMES[:count], connect_s, now, first)


def settled(count: int) -> Brokers:
    brokers = listed(count)
    assert not brokers.welcomed(True, 0.0)
    return brokers


def turns(brokers: Brokers, seconds: float) -> list[tuple[float, str]]:
    """Who has its turn from when on, while nobody answers."""
    seen = []
    while brokers.due <= seconds:
        now = brokers.due
        assert brokers.tick(now)
        seen.append((round(now, 6), brokers.endpoint))
    return seen


# ---- who does not answer ----


def test_those_who_do_not_answer_have_their_turns_one_after_the_other_and_longer_each_round() -> None:
    assert turns(listed(2, first=1), 20.0) == [
        *[(1.0, "a"), (2.0, "b"), (4.0, "a"), (6.0, "b"), (10.0, "a"), (14.0, "b"), (18.0, "a")],
    ]


@given(st.integers(2, 6), st.floats(6 * SHORTEST_S, 60.0), st.integers(0, 5))
def test_all_have_their_turn_while_a_caller_waits(count: int, connect_s: float, first: int) -> None:
    brokers = listed(count, first=first % count, connect_s=connect_s)
    begun = brokers.endpoint
    seen = {begun, *(name for _, name in turns(brokers, connect_s))}
    assert seen == set(NAMES[:count])


def test_a_caller_who_does_not_wait_at_all_does_not_make_the_turns_endless() -> None:
    assert len(turns(listed(2, connect_s=0.0), 1.0)) <= 1.0 / SHORTEST_S


def test_a_single_broker_keeps_its_turn_however_long_it_takes() -> None:
    brokers = listed(1)
    assert brokers.due == math.inf
    assert not brokers.welcomed(False, 1.0)
    assert not brokers.lost(2.0)
    assert brokers.due == math.inf


def test_a_single_broker_that_was_mismatched_is_connected_to_anew_about_every_second() -> None:
    brokers = listed(1)
    for now in (10.0, 20.0):
        brokers.mismatched(now)
        assert not brokers.tick(now + FIRST_S - 0.1)
        assert brokers.tick(now + FIRST_S)
        assert (brokers.endpoint, brokers.due) == ("a", math.inf)


def test_a_mismatched_broker_of_several_has_no_longer_turn_than_another() -> None:
    brokers = listed(2)
    brokers.mismatched(0.5)
    assert turns(brokers, FIRST_S) == [(FIRST_S, "b")]


# ---- who answers ----


def test_who_answers_is_kept() -> None:
    assert settled(3).due == math.inf


def test_after_a_lost_connection_the_next_has_its_turn_at_once() -> None:
    brokers = settled(3)
    assert brokers.lost(100.0)
    assert brokers.endpoint == "b"


def test_a_silent_broker_is_left_for_the_next_and_a_single_one_is_connected_to_anew() -> None:
    assert (settled(2).silent(100.0), settled(1).silent(100.0)) == (True, True)


def test_a_connection_lost_before_the_broker_answered_uses_up_its_turn() -> None:
    brokers = listed(2)
    assert not brokers.lost(0.1)
    assert turns(brokers, FIRST_S) == [(FIRST_S, "b")]


def test_connections_that_are_lost_one_after_the_other_are_not_replaced_without_a_pause() -> None:
    brokers = settled(2)
    assert brokers.lost(0.0)
    assert not brokers.welcomed(True, 0.0)
    assert not brokers.lost(0.0)
    assert not brokers.tick(FIRST_S - 0.1)
    assert brokers.tick(FIRST_S)
    assert brokers.endpoint == "a"


def test_who_is_not_ready_is_passed_over_for_one_who_is() -> None:
    brokers = listed(2)
    assert brokers.welcomed(False, 0.0)
    assert not brokers.welcomed(True, 0.1)
    assert (brokers.endpoint, brokers.due) == ("b", math.inf)


def test_where_nobody_is_ready_the_last_one_is_kept() -> None:
    brokers = listed(3)
    assert [brokers.welcomed(False, 0.0) for _ in range(3)] == [True, True, False]
    assert (brokers.endpoint, brokers.due) == ("c", math.inf)


def test_after_a_lost_connection_the_lost_one_counts_as_tried() -> None:
    brokers = settled(2)
    assert brokers.lost(10.0)
    assert not brokers.welcomed(False, 10.0)
    assert brokers.endpoint == "b"


@given(st.lists(st.sampled_from(["dead", "idle", "ready"]), min_size=2, max_size=5), st.integers(0, 4))
def test_a_client_finds_one_that_is_ready_or_else_one_that_answers(states: list[str], first: int) -> None:
    brokers = listed(len(states), first=first % len(states))
    now, kept = 0.0, False
    while not kept and now < 30.0:
        state = states[NAMES.index(brokers.endpoint)]
        if state == "dead":
            now = brokers.due
            assert brokers.tick(now)
        else:
            kept = not brokers.welcomed(state == "ready", now)
    best = "ready" if "ready" in states else "idle"
    assert kept == (best in states)
    if kept:
        assert states[NAMES.index(brokers.endpoint)] == best
        assert now <= CONNECT_S or best == "idle"


@given(
    st.integers(2, 4),
    st.lists(
        st.tuples(st.sampled_from(["ready", "idle", "lost", "silent", "unfit", "mismatched", "tick"]), st.floats(0, 10))
    ),
)
def test_whatever_happens_somebody_is_waited_for_or_has_answered_and_turns_do_not_come_thick_and_fast(
    count: int, course: list[tuple[str, float]]
) -> None:
    brokers = listed(count)
    now, opened, answered = 0.0, [0.0], False
    for what, pause in course:
        now += pause
        before = brokers.endpoint
        match what:
            case "ready" | "idle" if not answered:
                moved = brokers.welcomed(what == "ready", now)
                answered = not moved
            case "lost":
                moved, answered = brokers.lost(now), False
            case "silent":
                moved, answered = brokers.silent(now), False
            case "unfit":
                moved = brokers.unfit(now)
                answered = answered and not moved
            case "mismatched":
                brokers.mismatched(now)
                moved = False
            case _:
                moved = brokers.tick(now)
        if moved:
            opened.append(now)
            assert NAMES.index(brokers.endpoint) == (NAMES.index(before) + 1) % count
        else:
            assert brokers.endpoint == before
        assert (brokers.due == math.inf) == answered
        assert answered or brokers.due <= now + LONGEST_S
    for at in opened:
        # Each second: one that is lost at once, and all the others that are not ready.
        assert sum(at <= other < at + FIRST_S for other in opened) <= 2 * count + 1


def test_a_broker_without_workers_for_a_request_is_left_and_so_is_the_next_but_not_soon() -> None:
    brokers = settled(2)
    assert brokers.unfit(100.0)
    assert not brokers.welcomed(False, 100.0)
    assert brokers.endpoint == "b"
    assert not brokers.unfit(100.0 + UNFIT_S - 0.1)
    assert brokers.unfit(100.0 + UNFIT_S)
    assert brokers.endpoint == "a"


def test_a_single_broker_without_workers_is_kept() -> None:
    assert not settled(1).unfit(100.0)


# ---- the list ----


def test_a_list_is_one_text_with_commas_or_several_texts() -> None:
    assert endpoint_list("tcp://a:1, ipc:///b,tcp://a:1") == ("tcp://a:1", "ipc:///b")
    assert endpoint_list(["tcp://a:1", "tcp://b:2"]) == ("tcp://a:1", "tcp://b:2")


@pytest.mark.parametrize("wrong", ["", "localhost", "tcp://a:1,", "tcp://a:1,b:2", "tcp://a", []])
def test_each_address_of_a_list_is_checked(wrong: str) -> None:
    with pytest.raises(ConfigError, match="tcp://host:port"):
        endpoint_list(wrong)


def test_addresses_as_words() -> None:
    assert [either(NAMES[:count]) for count in (1, 2, 3)] == ["a", "a or b", "a, b or c"]
