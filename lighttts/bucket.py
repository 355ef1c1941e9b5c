"""A token bucket: how often something may be done, with bursts of up to a minute's worth.

Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass(slots=True)
class Bucket:
    """Tokens left at monotonic second `at`; it fills at `per_minute`, up to a minute's worth."""

    per_minute: int
    tokens: float
    at: float

    def level(self, now: float) -> float:
        """Tokens in it now."""
        return min(self.per_minute, self.tokens + max(0.0, now - self.at) * self.per_minute / MINUTE_S)

    def wait(self, now: float) -> float:
        """Seconds until there is one token; 0 if there is one now."""
        return max(0.0, 1.0 - self.level(now)) * MINUTE_S / self.per_minute

    def take(self, now: float) -> None:
        """Takes one token out."""
        self.tokens = self.level(now) - 1.0
        self.at = now
