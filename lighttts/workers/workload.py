"""The work a worker holds for one broker: accepted against credit, computed, answered through the outbox, released.

Credit granted plus work held is always the stage's capacity: one unit comes free when a request has ended and its last
result has left, or when the engine has let go of an aborted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lighttts import metrics
from lighttts.errors import LightTTSError, Overloaded, ProtocolError
from lighttts.logs import Logger
from lighttts.transport import wire
from lighttts.workers.compute import Compute, Parcel, Speak, pack
from lighttts.workers.outbox import Outbox
from lighttts.workers.places import Places
from lighttts.workers.stage import Stage, Work, failed, work_of

RETRY = 0.01
"""Seconds after which results that the socket would not take are offered again."""


@dataclass(slots=True)
class _Held:
    began: float
    aborted: bool = False


class Workload:
    """Work in hand of the broker at `seat`, between the socket thread (which calls this) and `compute`.

    `later(seconds, call)` sets a timer. `changed` is called whenever results have left or work has been released.
    """

    def __init__(
        self,
        seat: int,
        stage: Stage,
        compute: Compute,
        places: Places,
        outbox: Outbox,
        *,
        later: Callable[[float, Callable[[], None]], None],
        changed: Callable[[], None],
        log: Logger,
    ) -> None:
        self._seat = seat
        self._stage = stage
        self._compute = compute
        self._places = places
        self._outbox = outbox
        self._later = later
        self._changed = changed
        self._log = log
        self._held: dict[Work, _Held] = {}
        self._generation = 0
        self._version = wire.VERSION
        self._freed = 0
        self._retrying = False

    def __len__(self) -> int:
        return len(self._held)

    @property
    def settled(self) -> bool:
        """Nothing is held and nothing waits to be sent."""
        return not self._held and not self._outbox

    @property
    def clean(self) -> bool:
        """The engine has let go of what was abandoned."""
        return self._compute.generation(self._seat) == self._generation

    def stands_still(self) -> bool:
        """Whether results wait, and none has left since the last call."""
        return self._outbox.stands_still()

    def freed(self) -> int:
        """Requests released since the last call: the credit to grant again."""
        freed, self._freed = self._freed, 0
        return freed

    def speak(self, version: int) -> None:
        """Has what is sent from now on encoded in a protocol version."""
        self._version = version
        self._compute.submit(Speak(self._seat, version))

    # ---- from the broker -----------------------------------------------------------------------------------------

    def take(self, message: wire.StageWork) -> None:
        """Begins new work, or answers at once why not."""
        work = work_of(message, self._seat)
        if work in self._held:
            self.refused("duplicate", work)
        elif not isinstance(message, self._stage.takes):
            self._reject(work, ProtocolError(f"the {self._stage.name} worker does not take {type(message).__name__}"))
        elif len(self._held) >= self._stage.capacity:
            self._reject(
                work, Overloaded(f"the {self._stage.name} worker was sent more work than it granted credit for")
            )
        else:
            self._held[work] = _Held(time.monotonic())
            self._places.enter(work, message)

    def feed(self, message: wire.Tokens | wire.MoreText) -> None:
        """Hands on more input of held work."""
        work = work_of(message, self._seat)
        held = self._held.get(work)
        if held is None or type(message) is not self._stage.feeds:
            self.refused("unknown", work)
        elif not held.aborted:
            self._places.follow(work, message)

    def abort(self, message: wire.Abort) -> None:
        """Ends work without a word; released when the engine has let go of it. Unknown work is none: it has ended."""
        work = work_of(message, self._seat)
        held = self._held.get(work)
        if held and not held.aborted:
            held.aborted = True
            self._outbox.drop(work)
            if self._places.drop(work):
                self._release(work)
                self._changed()

    def abandon(self) -> None:
        """Drops everything; nothing more is sent of it."""
        if self._held:
            self._log.warning("work abandoned", requests=len(self._held))
        self._generation += 1
        self._freed = 0
        self._held.clear()
        self._outbox.clear()
        self._places.clear(self._seat, self._generation)
        self._compute.cleared(self._seat, 0)

    def refused(self, why: str, work: Work) -> None:
        """Counts and logs a message about `work` that changes nothing."""
        metrics.frames_refused.labels(self._stage.name, why).inc()
        self._log.warning("message of the broker refused", why=why, request_id=work.request_id, attempt=work.attempt)

    def _reject(self, work: Work, error: LightTTSError) -> None:
        self._outbox.add(pack(failed(work, self._stage.epoch, error), self._generation, self._version))
        self._flush()

    # ---- to the broker -------------------------------------------------------------------------------------------

    def collect(self, parcels: Iterable[Parcel]) -> None:
        """Takes over what the compute thread has made for this broker, and sends it."""
        for parcel in parcels:
            held = self._held.get(parcel.work)
            if held is None or parcel.generation != self._generation:
                continue
            if parcel.ends:
                self._places.done(parcel.work)
            if not held.aborted:
                self._outbox.add(parcel)
            elif parcel.ends:
                self._release(parcel.work)
        self._flush()

    def _flush(self) -> None:
        for parcel in self._outbox.flush():
            self._count(parcel)
            if parcel.ends:
                self._release(parcel.work)
        self._compute.cleared(self._seat, len(self._outbox))
        if self._outbox and not self._retrying:
            self._retrying = True
            self._later(RETRY, self._retry)
        self._changed()

    def _retry(self) -> None:
        self._retrying = False
        self._flush()

    def _release(self, work: Work) -> None:
        held = self._held.pop(work, None)
        if held:
            self._freed += 1
            metrics.stage_seconds.labels(self._stage.name).observe(time.monotonic() - held.began)

    def _count(self, parcel: Parcel) -> None:
        metrics.frames_total.labels(self._stage.name, parcel.kind).inc()
        if parcel.code:
            metrics.requests_failed.labels(self._stage.name, parcel.code).inc()
            self._log.warning("work failed", request_id=parcel.work.request_id, code=parcel.code)
