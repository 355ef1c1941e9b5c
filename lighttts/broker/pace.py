"""How fast requests end, and what follows for a client that has to come back: when there is likely to be room."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
"""How far back the pace is looked at."""
SAMPLE_S = 1.0
SHORTEST_S = 0.5
LONGEST_S = 30.0


def retry_after(ended: int, seconds: float, share: float = 1.0) -> float:
    """Seconds until one more request is likely to have ended, when `ended` have in the last `seconds`.

    `share`, above 0 to 1: how much of all that ends is of the kind waited for. When none has ended, one is taken to be
    about to. Between `SHORTEST_S` and `LONGEST_S`.
    """
    return min(LONGEST_S, max(SHORTEST_S, seconds / max(ended, 1) / share))


class Pace:
    """Looks once a second at how many requests have ended since the broker was started."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, 0)], maxlen=round(WINDOW_S / SAMPLE_S) + 1)

    def tick(self, ended: int, now: float) -> None:
        """`ended` requests have ended in all."""
        if now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, ended))

    def soon(self, now: float, share: float = 1.0) -> float:
        """`retry_after` as the last half minute says."""
        (began, before), (_, ended) = self._samples[0], self._samples[-1]
        return retry_after(ended - before, now - began, share)
