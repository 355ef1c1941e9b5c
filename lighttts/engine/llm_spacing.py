"""How long to wait between the decode steps of a GPU that the language model shares with others.

A step takes almost as long for one request as for forty: reading the weights is what takes the time. Steps launched as
fast as they go keep few requests in the engine and the GPU busy with them; spaced steps let requests gather, each step
makes more tokens, and the time between is the decode worker's. Speech needs 25 tokens a second; with 6 ms from step to
step a request still gets 167, the first 28 of which it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_RAMPS = ((0, 12), (32, 64))
"""Between these numbers of requests the time grows: by one half, from nothing, and by the other half. Few requests run
as fast as they go, a load that leaves the GPU idle at times at half the whole time, and a crowd waits all of it."""


class Spacing:
    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds`: from the beginning of a step to that of the next, at most."""
        self._seconds = seconds
        self._clock = clock
        self._began = -seconds

    def pause(self, active: int, *, full: bool) -> float:
        """Seconds to wait until the next step of `active` requests, which is taken to begin then.

        If the engine is `full` and requests wait for a slot, there is nothing to gather.
        """
        now = self._clock()
        grown = sum(min(max(active - begin, 0) / (end - begin), 1.0) for begin, end in _RAMPS)
        due = self._began + self._seconds * grown / len(_RAMPS)
        self._began = now if full else max(now, due)
        return self._began - now
