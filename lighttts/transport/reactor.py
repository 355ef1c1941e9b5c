"""The loop of every daemon and of the client: poll, drain each socket up to a budget, run what is due.

One thread owns the sockets. Draining with a budget keeps one busy socket from starving the others and the timers;
draining at all, instead of one wake-up a message, is about ten times faster. Other threads hand work in by `post`.
"""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable

import zmq

from lighttts.transport.transport import Link, Router

DRAIN_BUDGET = 128

MessageHandler = Callable[[bytes, list[bytes]], None]


class Reactor:
    """Runs handlers for received messages, posted calls and timers, all in the thread that calls `run`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._poller = zmq.Poller()
        self._sources: dict[object, tuple[Router | Link, MessageHandler]] = {}
        self._timers: list[tuple[float, int, float, Callable[[], None]]] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._wake, zmq.POLLIN)
        self._stopped = False
        self._after_turn: list[Callable[[], None]] = []

    def add(self, transport: Router | Link, handler: MessageHandler) -> None:
        """Calls `handler(peer, frames)` for each message `transport` receives."""
        self._sources[transport.socket] = (transport, handler)
        self._poller.register(transport.socket, zmq.POLLIN)

    def remove(self, transport: Router | Link) -> None:
        """Stops listening to `transport` (it is not closed)."""
        if self._sources.pop(transport.socket, None):
            self._poller.unregister(transport.socket)

    def every(self, interval: float, call: Callable[[], None]) -> None:
        """Calls `call` each `interval` seconds."""
        heapq.heappush(self._timers, (self._clock() + interval, next(self._order), interval, call))

    def after(self, delay: float, call: Callable[[], None]) -> None:
        """Calls `call` once, `delay` seconds from now."""
        heapq.heappush(self._timers, (self._clock() + delay, next(self._order), 0.0, call))

    def after_turn(self, call: Callable[[], None]) -> None:
        """Calls `call` after every turn in which anything happened: for work that is cheaper done once for many."""
        self._after_turn.append(call)

    def post(self, call: Callable[[], None]) -> None:
        """Runs `call` in the loop's thread; may be called from any thread and from signal handlers."""
        self._posted.append(call)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Ends `run` after the current turn; may be called from any thread."""
        self.post(self._stop)

    def _stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Runs until `stop`. An exception of a handler ends the loop and is raised."""
        while not self._stopped:
            self.turn(self._until_next_timer())

    def turn(self, timeout: float | None = 0.0) -> None:
        """One turn: waits at most `timeout` seconds (None: for ever) for something to do, then does what there is."""
        ready = self._poller.poll(None if timeout is None else max(0, round(timeout * 1000 + 0.5)))
        for source, _ in ready:
            if source == self._wake:
                self._run_posted()
            elif source in self._sources:
                transport, handler = self._sources[source]
                for peer, frames in transport.receive(DRAIN_BUDGET):
                    handler(peer, frames)
        self._run_timers()
        if ready:
            for call in self._after_turn:
                call()

    def close(self) -> None:
        """Frees the wake-up descriptor; the transports are their owner's to close."""
        os.close(self._wake)

    def _run_posted(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def _run_timers(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, interval, call = heapq.heappop(self._timers)
            if interval:
                heapq.heappush(self._timers, (max(due + interval, now), next(self._order), interval, call))
            call()

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - self._clock()) if self._timers else None
