"""When a failed request may be sent again: exponential backoff with full jitter, and a budget for a whole client.

The budget keeps retries from multiplying the load of a system in trouble: it is a bucket that each request fills by a
tenth of a token, time by another, and each retry empties by one (after Finagle's retry budgets).
"""

from __future__ import annotations

FIRST_S = 0.5
"""Most seconds before the first retry, beyond what the error asks for; doubled for each one after it."""
LONGEST_S = 15.0
PER_REQUEST = 0.1
PER_SECOND = 0.1
RESERVE = 10.0
"""Most tokens in the budget, and what it begins with."""


def backoff(retry: int, retry_after: float | None, chance: float) -> float:
    """Seconds to wait before retry number `retry` (from 1), with `chance` drawn evenly from 0 to 1.

    Never less than `retry_after`, the time that the error asks for: who is told the same then comes back at different
    times.
    """
    longest = min(LONGEST_S, FIRST_S * 2.0 ** min(retry - 1, 30))
    return (retry_after or 0.0) + chance * longest


class Budget:
    """Retries that one client may still make; `now` is in seconds, of any clock that only goes forward."""

    def __init__(self, now: float) -> None:
        self._tokens = RESERVE
        self._at = now

    def earn(self, now: float) -> None:
        """A request is begun."""
        self._fill(now)
        self._tokens = min(RESERVE, self._tokens + PER_REQUEST)

    def spend(self, now: float) -> bool:
        """Pays for one retry; False if there is not enough for it."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float) -> None:
        self._tokens = min(RESERVE, self._tokens + max(0.0, now - self._at) * PER_SECOND)
        self._at = now
