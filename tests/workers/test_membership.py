"""A worker's membership of the broker, without sockets: what each event leads to, and when silence is silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.errors import InternalError
from lighttts.workers.membership import (
    FAREWELL_TIMEOUT,
    REGISTER_RETRY,
    TRANSITIONS,
    Action,
    Event,
    Membership,
    State,
)

LOCAL = [Event.SILENCE, Event.TERMINATE, Event.STOP, Event.BROKEN]
FROM_BROKER = [Event.REGISTERED, Event.FORGOTTEN, Event.FAREWELL]


def ready() -> Membership:
    membership = Membership(0.0)
    membership.agree(heartbeat=1.0, expiry=5.0)
    membership.on(Event.REGISTERED, 0.0)
    return membership


def test_registration_is_followed_by_credit() -> None:
    assert Membership(0.0).on(Event.REGISTERED, 0.0) == (Action.GRANT,)


@pytest.mark.parametrize("event", [Event.FORGOTTEN, Event.SILENCE])
def test_a_broker_that_lost_the_worker_is_joined_anew_with_nothing_in_hand(event: Event) -> None:
    membership = ready()
    assert membership.on(event, 1.0) == (Action.ABANDON, Action.REGISTER)
    assert membership.state is State.JOINING


def test_termination_drains_first_and_then_quits() -> None:
    membership = ready()
    assert membership.on(Event.TERMINATE, 1.0) == (Action.DRAIN,)
    assert membership.on(Event.TERMINATE, 1.0) == (Action.ABANDON, Action.BYE)
    assert membership.on(Event.TERMINATE, 1.0) == (Action.END,)


def test_a_drained_worker_says_bye_and_waits_for_the_farewell() -> None:
    membership = ready()
    membership.on(Event.TERMINATE, 1.0)
    assert membership.on(Event.SETTLED, 2.0) == (Action.BYE,)
    assert membership.on(Event.FAREWELL, 2.0) == (Action.END,)
    assert membership.state is State.GONE


@given(events=st.lists(st.sampled_from(LOCAL + FROM_BROKER)))
def test_every_event_is_survived_in_every_state_and_the_worker_can_always_be_ended(events: list[Event]) -> None:
    membership = Membership(0.0)
    for event in events:
        membership.on(event, 0.0)
    for _ in range(3):
        membership.on(Event.TERMINATE, 0.0)
    assert membership.state is State.GONE


@given(events=st.lists(st.sampled_from(list(Event))))
def test_work_is_held_only_while_credit_is_agreed(events: list[Event]) -> None:
    """Between `GRANT` and `ABANDON` (or a drain's end) the worker is ready or draining, and never else."""
    membership, held = Membership(0.0), False
    for event in events:
        if event is Event.SETTLED and membership.state is not State.DRAINING:
            continue
        actions = membership.on(event, 0.0)
        held = (held or Action.GRANT in actions) and Action.ABANDON not in actions and event is not Event.SETTLED
        assert held == (membership.state in (State.READY, State.DRAINING))


def test_what_cannot_happen_raises_with_the_history() -> None:
    with pytest.raises(InternalError, match=r"SETTLED while ready.*JOINING-REGISTERED->READY"):
        ready().on(Event.SETTLED, 1.0)


def test_the_table_leads_from_every_state_to_the_end() -> None:
    for state in set(State) - {State.GONE}:
        assert TRANSITIONS[state, Event.STOP][0] in (State.LEAVING, State.GONE)


def test_a_broker_is_silent_when_nothing_came_for_longer_than_the_expiry() -> None:
    membership = ready()
    for second in range(1, 6):
        assert not membership.silent(float(second))
    assert membership.silent(6.0)


def test_any_message_ends_the_silence() -> None:
    membership = ready()
    for second in range(1, 20):
        membership.heard(second - 0.5)
        assert not membership.silent(float(second))


def test_a_worker_that_was_itself_stopped_does_not_blame_the_broker() -> None:
    membership = ready()
    assert not membership.silent(1.0)
    for second in range(100, 106):
        assert not membership.silent(float(second))
    assert membership.silent(106.0)


def test_registration_is_repeated_and_the_farewell_not_awaited_for_ever() -> None:
    membership = Membership(0.0)
    assert not membership.silent(REGISTER_RETRY * 0.9)
    assert membership.silent(REGISTER_RETRY * 1.1)
    membership.on(Event.TERMINATE, 10.0)
    assert not membership.silent(10.0 + FAREWELL_TIMEOUT * 0.9)
    assert membership.silent(10.0 + FAREWELL_TIMEOUT * 1.1)
