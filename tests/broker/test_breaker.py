"""The circuit breaker: what it lets through, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lighttts.broker.breaker import TRANSITIONS, Breaker, BreakerState, Event


def opened(failures: int = 3, open_s: float = 10.0, now: float = 0.0) -> Breaker:
    breaker = Breaker(failures, open_s)
    for _ in range(failures):
        breaker.failed(now)
    return breaker


def test_it_opens_after_five_failures_in_a_row_for_a_minute_unless_told_otherwise() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(100.0)
        assert breaker.allow(100.0)
    breaker.failed(100.0)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow(159.9)
    assert breaker.allow(160.0)


def test_a_success_between_failures_starts_the_count_anew() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.failures == 0


def test_it_tells_when_something_may_be_tried_again() -> None:
    breaker = Breaker(3, 10.0)
    assert breaker.retry_after(0.0) == 0.0
    breaker = opened(now=5.0)
    assert [breaker.retry_after(now) for now in (5.0, 12.0, 15.0, 99.0)] == [10.0, 3.0, 0.0, 0.0]


def test_half_open_lets_one_trial_through_at_a_time() -> None:
    breaker = opened()
    assert [breaker.allow(10.0) for _ in range(3)] == [True, False, False]
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.allow(10.0)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allow(10.0)
    breaker.failed(10.0)
    assert breaker.state is BreakerState.CLOSED


def test_a_trial_that_fails_opens_it_for_the_whole_time_again() -> None:
    breaker = opened()
    breaker.allow(12.0)
    breaker.failed(13.0)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow(22.9)
    assert breaker.allow(23.0)


def test_a_trial_of_which_nothing_is_heard_is_followed_by_another() -> None:
    breaker = opened()
    assert breaker.allow(10.0)
    assert not breaker.allow(19.9)
    assert breaker.allow(20.0)
    assert not breaker.allow(20.0)


@pytest.mark.parametrize("late", ["succeeded", "failed"])
def test_what_was_begun_before_it_opened_changes_nothing_when_it_ends(late: str) -> None:
    breaker = opened()
    breaker.succeeded() if late == "succeeded" else breaker.failed(9.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.failures == 3
    assert breaker.retry_after(9.0) == 1.0


def test_the_table_has_every_event_that_can_come_in_every_state() -> None:
    cannot = {(BreakerState.CLOSED, Event.TRIAL), (BreakerState.OPEN, Event.LIMIT)}
    cannot.add((BreakerState.HALF_OPEN, Event.FAILURE))
    assert set(TRANSITIONS) == {(state, event) for state in BreakerState for event in Event} - cannot


@given(st.integers(1, 20), st.floats(0.1, 1000.0))
def test_any_limit_is_reached_by_exactly_so_many_failures(failures: int, open_s: float) -> None:
    breaker = Breaker(failures, open_s)
    for _ in range(failures - 1):
        breaker.failed(0.0)
        assert breaker.state is BreakerState.CLOSED
    breaker.failed(0.0)
    assert breaker.state is BreakerState.OPEN


class AnyHistory(RuleBasedStateMachine):
    """Whatever is told in whatever order, at whatever times, against a model that keeps the whole history."""

    LIMIT, OPEN_S = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(self.LIMIT, self.OPEN_S)
        self.now = 0.0
        self.row = 0
        self.quiet_since: float | None = None
        self.trial = False

    @rule(seconds=st.integers(0, 60).map(lambda quarters: quarters / 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        may = self.quiet_since is None or self.now >= self.quiet_since + self.OPEN_S
        assert self.breaker.allow(self.now) is may
        if may and self.quiet_since is not None:
            self.trial, self.quiet_since = True, self.now

    @rule()
    def succeed(self) -> None:
        self.breaker.succeeded()
        if self.trial or self.quiet_since is None:
            self.row, self.quiet_since, self.trial = 0, None, False

    @rule()
    def fail(self) -> None:
        self.breaker.failed(self.now)
        if self.trial or self.quiet_since is None:
            self.row += 1
            if self.trial or self.row >= self.LIMIT:
                self.quiet_since, self.trial = self.now, False

    @invariant()
    def it_is_as_its_history_says(self) -> None:
        expected = BreakerState.CLOSED if self.quiet_since is None else BreakerState.OPEN
        assert self.breaker.state is (BreakerState.HALF_OPEN if self.trial else expected)
        assert 0.0 <= self.breaker.retry_after(self.now) <= self.OPEN_S
        assert (self.breaker.retry_after(self.now) > 0) <= (self.quiet_since is not None)


TestAnyHistory = AnyHistory.TestCase
