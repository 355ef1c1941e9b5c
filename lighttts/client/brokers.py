"""Which broker of a list a client is connected to, how long it is given, and when the next has its turn. Pure.

SEEKING --ready, or the others have been tried--> SETTLED --lost, or unfit--> SEEKING
SEEKING --not ready, or its time is up--> SEEKING, at the next broker

The turn goes round the list. Whoever answers is given up for the next one only if it is not ready, so that a system
without workers does not send its clients in circles. A single broker keeps its turn: libzmq connects again by itself,
unless the connection was mismatched; then it has to be opened anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FIRST_S = 1.0
LONGEST_S = 4.0
SHORTEST_S = 0.1
"""Seconds that a broker has to answer: in the first round, doubled for each one after it, up to the longest. Less in
the first round, down to the shortest, where the list is too long for a caller to wait for all of it."""


UNFIT_S = 10.0
"""Seconds between two searches for a broker with workers, where the system perhaps has none."""


class Brokers:
    """The brokers at `endpoints`, beginning with number `first`.

    Callers wait `connect_s` seconds for any of them. Times are monotonic seconds. What returns True demands that a
    connection to `endpoint` is opened, and the one before closed.
    """

    def __init__(self, endpoints: Sequence[str], connect_s: float, now: float, first: int = 0) -> None:
        self._endpoints = endpoints
        self._index = first
        self._first_s = max(SHORTEST_S, min(FIRST_S, connect_s / len(endpoints)))
        self._opened = -math.inf
        self._tried = 1
        self._settled = False
        self._sought = -math.inf
        self.due = math.inf if self.alone else now + self._patience

    @property
    def endpoint(self) -> str:
        """The broker whose turn it is."""
        return self._endpoints[self._index]

    @property
    def alone(self) -> bool:
        """There is no other to go to."""
        return len(self._endpoints) == 1

    def welcomed(self, ready: bool, now: float) -> bool:
        """The broker has answered; `ready` says whether it has workers."""
        if not ready and self._tried < len(self._endpoints):
            return self._next(now)
        self._settled = True
        self.due = math.inf
        return False

    def lost(self, now: float) -> bool:
        """The connection is lost. Who loses one after another pauses between them."""
        if self.alone or not self._settled:
            return False
        self._seek(now)
        self.due = max(now, self._opened + self._patience)
        return self.tick(now)

    def silent(self, now: float) -> bool:
        """There is a connection, but the broker does not answer; what it still says later must not be heard."""
        return self.alone or self.lost(now)

    def unfit(self, now: float) -> bool:
        """The broker had no workers for a request, though it may have had them before: perhaps another has."""
        if self.alone or not self._settled or now < self._sought + UNFIT_S:
            return False
        self._seek(now)
        return self._next(now)

    def mismatched(self, now: float) -> None:
        """The connection will not be tried again, or could not be opened."""
        if self.alone:
            self.due = now + FIRST_S

    def tick(self, now: float) -> bool:
        """To be called at `due`: the broker's time is up."""
        return now >= self.due and self._next(now)

    def _seek(self, now: float) -> None:
        self._settled = False
        self._tried = 1
        self._sought = now

    @property
    def _patience(self) -> float:
        rounds = (self._tried - 1) // len(self._endpoints)
        return min(LONGEST_S, self._first_s * 2.0 ** min(rounds, 30))

    def _next(self, now: float) -> bool:
        self._index = (self._index + 1) % len(self._endpoints)
        self._tried += 1
        self._opened = now
        self.due = math.inf if self.alone else now + self._patience
        return True
