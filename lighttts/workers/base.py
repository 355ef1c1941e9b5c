"""A worker: its stage, the brokers that it serves, and the process' life around them.

Two threads. This one owns the sockets and never computes; `Compute` runs the stage and never touches a socket. For each
broker there is a `Seat`; all of them share the one engine.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from lighttts.errors import InternalError, LightTTSError
from lighttts.logs import get_logger
from lighttts.notify import notify, watchdog_interval
from lighttts.transport.reactor import Reactor
from lighttts.transport.security import Proof
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from lighttts.workers.compute import Compute, Parcel
from lighttts.workers.connector import Address
from lighttts.workers.membership import Event, State
from lighttts.workers.places import Places
from lighttts.workers.report import Report
from lighttts.workers.seat import Seat, Shared
from lighttts.workers.stage import Boot, Stage

COMPUTE_STOP = 5.0
"""Seconds a leaving worker gives its engine to finish the step it is in."""
STUCK = 30.0
"""Seconds in one engine step after which the worker reports itself unhealthy."""
HIGH_WATER_MARK = 256
"""Messages a socket queues: bounds the audio that waits in memory for a slow broker."""
_FOREMOST = (State.READY, State.DRAINING, State.LEAVING, State.JOINING, State.GONE)
"""Of several seats, the first of these that one is in is the worker's."""


class Worker:
    """One worker's life, from `run` to the exit code it returns.

    `brokers` says where they are, `proof` what to prove there if that is tcp; `observe` is called at every beat to
    update gauges of the stage. Raises `ConfigError` on a malformed endpoint or without a usable key.
    """

    def __init__(
        self,
        stage: Stage,
        boot: Boot,
        brokers: Sequence[Address],
        *,
        proof: Proof | None = None,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        self._report = Report(stage, observe)
        self._log = get_logger(stage=stage.name, worker=boot.worker)
        self._sockets = Sockets(SocketOptions(high_water_mark=HIGH_WATER_MARK), proof)
        self._reactor = Reactor()
        self._compute = Compute(stage, lambda: self._reactor.post(self._collect))
        self._places = Places(self._compute, stage.capacity)
        shared = Shared(stage, boot, self._sockets, self._reactor, self._compute, self._places)
        try:
            self._seats = [Seat(number, address, shared, self._changed) for number, address in enumerate(brokers)]
        except LightTTSError:
            self._sockets.close()
            self._reactor.close()
            raise
        self._exit_code = 0
        # Reentrant: a signal may come while this thread holds it.
        self._life = threading.RLock()
        self._ended = False
        self.hung = False
        """After `run`: the engine did not come back from its last step."""

    # ---- from any thread -----------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Drains and ends; asked again, ends at once. May be called from signal handlers."""
        self._tell(Event.TERMINATE)

    def stop(self) -> None:
        """Ends at once; work in hand is lost. May be called from signal handlers."""
        self._tell(Event.STOP)

    def _tell(self, event: Event) -> None:
        with self._life:
            if not self._ended:
                self._reactor.post(lambda: self._end(event))

    def health(self) -> tuple[bool, str]:
        """Whether the worker can serve, and a sentence about it."""
        stuck = self._compute.stuck_for()
        if stuck > STUCK:
            return False, f"the engine has been in one step for {stuck:.0f} s"
        return self._state is State.READY, f"{self._standing()}, {self._active} active"

    # ---- what all seats come to ----------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        """Ready if it is so for any broker."""
        states = {seat.state for seat in self._seats}
        return next(state for state in _FOREMOST if state in states)

    @property
    def _active(self) -> int:
        return sum(seat.active for seat in self._seats)

    def _standing(self) -> str:
        state = self._state
        if len(self._seats) == 1:
            return state.value
        return f"{state.value} ({sum(seat.state is state for seat in self._seats)} of {len(self._seats)} brokers)"

    # ---- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serves until it is told to end; returns the process' exit code."""
        self._compute.start()
        for seat in self._seats:
            seat.begin()
        self._tick()
        watchdog = watchdog_interval()
        if watchdog:
            self._reactor.every(watchdog, self._watch)
        try:
            self._reactor.run()
        finally:
            self.hung = not self._compute.stop(COMPUTE_STOP)
            self._sockets.close()
            with self._life:
                self._ended = True
            if not self.hung:
                self._reactor.close()
        self._log.info("worker ended", exit_code=self._exit_code)
        return self._exit_code

    def _end(self, event: Event) -> None:
        """Ends all memberships, each in its own time."""
        notify("STOPPING=1")
        for seat in self._seats:
            seat.on(event)

    def _changed(self) -> None:
        """A seat's state has."""
        if self._state is State.GONE:
            self._reactor.stop()
        else:
            self._tell_all()

    def _tick(self) -> None:
        self._tell_all()
        state = self._state
        self._reactor.after(min(seat.interval for seat in self._seats if seat.state is state), self._tick)

    def _tell_all(self) -> None:
        self._report(self._state, self._standing(), self._active, self._places.waiting)

    def _watch(self) -> None:
        if self._compute.moved():
            notify("WATCHDOG=1")

    # ---- from the compute thread ---------------------------------------------------------------------------------

    def _collect(self) -> None:
        for number, parcels in itertools.groupby(sorted(self._compute.take(), key=_seat_of), key=_seat_of):
            self._seats[number].collect(parcels)
        if self._compute.broken:
            self._exit_code = InternalError.exit_code
            self._end(Event.BROKEN)


def _seat_of(parcel: Parcel) -> int:
    return parcel.work.seat
