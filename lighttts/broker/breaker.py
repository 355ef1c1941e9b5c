"""A circuit breaker: after some failures in a row nothing is tried for a while, then one trial decides.

closed      everything may be tried
open        nothing may be tried
half open   one trial is under way

Pure: the time, in monotonic seconds, comes with every call. Not safe to share between threads without a lock.
"""

from __future__ import annotations

import enum

FAILURES = 5
OPEN_S = 60.0


class BreakerState(enum.Enum):
    """What may be tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Event(enum.Enum):
    """What changes a breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    """One failure of a few that are suffered."""
    LIMIT = "limit"
    """One failure too many."""
    TRIAL = "trial"
    """It has been open, or waited for the outcome of a trial, for long enough: another trial begins."""


_S, _E = BreakerState, Event

TRANSITIONS: dict[tuple[BreakerState, Event], BreakerState] = {
    (_S.CLOSED, _E.SUCCESS): _S.CLOSED,
    (_S.CLOSED, _E.FAILURE): _S.CLOSED,
    (_S.CLOSED, _E.LIMIT): _S.OPEN,
    # What was begun before it opened says nothing of how things are now.
    (_S.OPEN, _E.SUCCESS): _S.OPEN,
    (_S.OPEN, _E.FAILURE): _S.OPEN,
    (_S.OPEN, _E.TRIAL): _S.HALF_OPEN,
    (_S.HALF_OPEN, _E.SUCCESS): _S.CLOSED,
    (_S.HALF_OPEN, _E.LIMIT): _S.OPEN,
    (_S.HALF_OPEN, _E.TRIAL): _S.HALF_OPEN,
}


class Breaker:
    """Opens after `failures` failures in a row, for `open_s` seconds."""

    __slots__ = ("_limit", "_open_s", "_since", "failures", "state")

    def __init__(self, failures: int = FAILURES, open_s: float = OPEN_S) -> None:
        self._limit = failures
        self._open_s = open_s
        self._since = 0.0
        self.state = BreakerState.CLOSED
        self.failures = 0
        """Failures in a row."""

    def allow(self, now: float) -> bool:
        """Whether to try now. While not closed, True begins a trial: its outcome is to be told.

        A trial whose outcome is not told within the open time counts as lost, and another is allowed.
        """
        if self.state is BreakerState.CLOSED:
            return True
        if self.retry_after(now) > 0:
            return False
        self._since = now
        self._move(Event.TRIAL)
        return True

    def succeeded(self) -> None:
        """Something that was tried succeeded."""
        if self.state is not BreakerState.OPEN:
            self.failures = 0
        self._move(Event.SUCCESS)

    def failed(self, now: float) -> None:
        """Something that was tried failed."""
        if self.state is BreakerState.OPEN:
            self._move(Event.FAILURE)
            return
        self.failures += 1
        if self.state is BreakerState.CLOSED and self.failures < self._limit:
            self._move(Event.FAILURE)
            return
        self._since = now
        self._move(Event.LIMIT)

    def retry_after(self, now: float) -> float:
        """Seconds until something may be tried; 0 if it may be now."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        return max(0.0, self._since + self._open_s - now)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
