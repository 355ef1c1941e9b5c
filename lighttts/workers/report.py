"""What a worker tells of itself at every beat: its status to the service manager, its gauges to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from lighttts import metrics
from lighttts.notify import notify
from lighttts.workers.heap import give_back_heap
from lighttts.workers.membership import State
from lighttts.workers.stage import Stage

_START_TIMEOUT_EXTENSION = "EXTEND_TIMEOUT_USEC=30000000"


class Report:
    """Reports on `stage`; `observe` updates gauges of its own."""

    def __init__(self, stage: Stage, observe: Callable[[], None]) -> None:
        self._stage = stage
        self._observe = observe
        self._last = (time.monotonic(), 0.0)
        self._ready_told = False
        self._trimmed_at = 0.0

    def __call__(self, state: State, standing: str, active: int, in_line: int) -> None:
        """Sends status, `standing` in words, and sets gauges; `active` requests are held, `in_line` for the engine."""
        status = f"STATUS={standing}, {active} active, {self._rate():.0f} {self._stage.unit}/s"
        if state is State.JOINING and not self._ready_told:
            # The service manager's start timeout must not end a worker that waits for its broker.
            notify(_START_TIMEOUT_EXTENSION, status)
        elif state is State.READY and not self._ready_told:
            self._ready_told = notify("READY=1", status)
        else:
            notify(status)
        metrics.queue_length.labels(self._stage.name).set(self._stage.waiting + in_line)
        metrics.active_requests.labels(self._stage.name).set(active)
        if not active and self._stage.made != self._trimmed_at:
            # A burst of requests leaves the heap in pieces that would stay resident for ever.
            give_back_heap()
            self._trimmed_at = self._stage.made
        metrics.memory_usage.labels("rss").set(metrics.resident_bytes())
        self._observe()

    def _rate(self) -> float:
        """What the stage has made a second since the last report."""
        (then, made), now = self._last, time.monotonic()
        self._last = (now, self._stage.made)
        return (self._stage.made - made) / max(now - then, 1e-3)
