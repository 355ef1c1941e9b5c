"""The client's one IO thread: runs the reactor around the pure `Session` and hands events to those who wait.

Fork safety: a ZeroMQ context does not survive a fork. Start processes with `spawn` and make a client in each.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import randrange
from typing import Protocol

from lighttts import __version__
from lighttts.client.absence import Absence
from lighttts.client.attempts import Attempts
from lighttts.client.brokers import Brokers
from lighttts.client.events import FINAL, Connect, Deliver, Event, Failed, Key, Send
from lighttts.client.retry import Budget
from lighttts.client.script import Mark
from lighttts.client.session import Session
from lighttts.client.stream import Timeouts
from lighttts.client.voices import Asking
from lighttts.errors import Cancelled, InternalError, InvalidInput, LightTTSError, Unavailable
from lighttts.transport.endpoints import endpoint_list
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.reactor import Reactor
from lighttts.transport.schema import Buffer
from lighttts.transport.security import Proof
from lighttts.transport.transport import NO_TARGET, Delivery, Link, Sockets
from lighttts.transport.watch import Connection, connection_event
from lighttts.transport.wire import Hello, SpeechRequest, encode

RETRY_SEND = 0.01
"""Seconds until another try when the socket takes nothing more."""


class Sink(Protocol):
    """Where the events of one request or query go; `put` is called in the IO thread."""

    def put(self, event: Event) -> None: ...


class ClientLoop:
    """The connection of one client to one of `brokers`, at first any. All methods may be called from any thread.

    `keys` is the folder with the client's key and the broker's, for tcp. Raises `ConfigError` when one of `brokers` is
    not an address or a key cannot be used.
    """

    def __init__(self, brokers: str | Sequence[str], timeouts: Timeouts, keys: Path | None = None) -> None:
        endpoints = endpoint_list(brokers)
        hello = Hello(client=f"{socket.gethostname()[:64]}:{os.getpid()}", software=f"lighttts-client/{__version__}")
        choice = Brokers(endpoints, timeouts.connect, time.monotonic(), randrange(len(endpoints)))
        self._session = Session(choice, Absence(endpoints), timeouts, hello)
        self._attempts = Attempts(self._session, Budget(time.monotonic()))
        self._sinks: dict[Key, Sink] = {}
        self._outbox: deque[list[Buffer]] = deque()
        self._pid = os.getpid()
        self._keyed = keys is not None
        self._reactor = Reactor()
        self._sockets = Sockets(security=Proof(KeyFolder(keys), Role.CLIENT) if keys else None)
        try:
            self._line: tuple[Link, Link] | None = self._opened(choice.endpoint)
        except BaseException:
            self._reactor.close()
            self._sockets.close()
            raise
        # Re-entrant: the garbage collector may call `cancel` in a thread that is inside `_post`.
        self._gate = threading.RLock()
        self._open = True
        self._running = True
        self._thread = threading.Thread(target=self._run, name="lighttts-client", daemon=True)
        self._thread.start()

    def open(self, asked: SpeechRequest, sink: Sink, retries: int) -> None:
        """Begins a request, and up to `retries` times again if it fails.

        Raises `Unavailable` when the client is closed or belongs to another process, `InvalidInput`.
        """
        if retries < 0:
            raise InvalidInput("the number of retries must be 0 or more", field="retries")
        self._begin(asked.request_id, sink, lambda: self._attempts.open(asked, retries, time.monotonic()))

    def query(self, asking: Asking, sink: Sink, *, patient: bool = False) -> None:
        """Asks a question. Raises `Unavailable` as `open` does."""
        key = self._session.new_key()
        self._begin(key, sink, lambda: self._session.query(asking, key, time.monotonic(), patient=patient))

    def consumed(self, request_id: str) -> None:
        """One chunk has been taken."""
        self._post(lambda: self._attempts.consumed(request_id, time.monotonic()))

    def write(self, request_id: str, item: str | Mark) -> None:
        """More of a text in pieces, which must be of a request without retries."""
        self._post(lambda: self._session.write(request_id, item, time.monotonic()))

    def cancel(self, request_id: str) -> None:
        """Ends a request early. Idempotent, also after `close`."""
        self._post(lambda: self._attempts.cancel(request_id, time.monotonic()))

    def fail(self, request_id: str, error: LightTTSError) -> None:
        """Ends a request with `error`, as `cancel` does."""
        self._post(lambda: self._session.fail(request_id, error, time.monotonic()))

    def close(self) -> None:
        """Cancels everything, lets the last messages leave (at most a second), ends the thread. Idempotent."""
        self._post(self._stop)
        with self._gate:
            self._open = False
        if threading.current_thread() is not self._thread and self._pid == os.getpid():
            self._thread.join()

    def close_with(self, owner: object) -> None:
        """Closes when `owner` is garbage, and at the end of the program."""
        weakref.finalize(owner, self.close)

    def cancel_with(self, owner: object, request_id: str) -> None:
        """Cancels a request when `owner` is garbage."""
        weakref.finalize(owner, self.cancel, request_id)

    def _begin(self, key: Key, sink: Sink, call: Callable[[], None]) -> None:
        if self._pid != os.getpid():
            text = "a client does not survive a fork: start processes with 'spawn' and make a client in each"
            raise Unavailable(text, retryable=False)
        with self._gate:
            self._sinks[key] = sink
            if not self._post(call):
                del self._sinks[key]
                raise Unavailable("the client is closed: make a new one", retryable=False)

    def _post(self, call: Callable[[], None]) -> bool:
        with self._gate:
            if not self._open or self._pid != os.getpid():
                return False
            self._reactor.post(call)
            return True

    # ---- in the IO thread ----

    def _run(self) -> None:
        end: LightTTSError = Cancelled("the client was closed")
        try:
            while self._running:
                self._reactor.turn(self._patience())
                self._attempts.tick(time.monotonic())
                self._session.tick(time.monotonic())
                self._execute()
        except Exception as error:
            end = InternalError(f"the client failed: {type(error).__name__}: {error}")
            end.__cause__ = error
        with self._gate:
            self._open = False
        # Whoever still waits, also for what was posted too late, is told.
        for sink in self._sinks.values():
            sink.put(Failed(end))
        self._sinks.clear()
        self._reactor.close()
        self._sockets.close()

    def _stop(self) -> None:
        self._session.close(time.monotonic())
        self._running = False

    def _received(self, peer: bytes, frames: list[bytes]) -> None:
        self._session.received(frames, time.monotonic())

    def _connection_changed(self, peer: bytes, frames: list[bytes]) -> None:
        connection, now = self._session.connection, time.monotonic()
        match connection_event(frames):
            case Connection.MADE:
                connection.made(now)
            case Connection.LOST:
                self._connection_lost()
            case Connection.MISMATCHED:
                connection.refused(now, for_good=True)
            case Connection.REFUSED if self._keyed:
                connection.refused(now)

    def _connection_lost(self) -> None:
        if self._line:
            link, _ = self._line
            for _, last in link.receive(link.socket.rcvhwm):
                self._session.received(last, time.monotonic())
        self._outbox.clear()
        self._session.disconnected(time.monotonic())

    def _opened(self, endpoint: str) -> tuple[Link, Link]:
        link, watch = self._sockets.watched_dealer(endpoint)
        self._reactor.add(link, self._received)
        self._reactor.add(watch, self._connection_changed)
        return link, watch

    def _connect(self, endpoint: str) -> None:
        """Replaces the connection by one to `endpoint`; what was to be sent was for the other broker."""
        self._outbox.clear()
        if self._line:
            for transport in self._line:
                self._reactor.remove(transport)
            self._sockets.discard(*self._line)
            self._line = None
        try:
            self._line = self._opened(endpoint)
        except LightTTSError as error:
            self._session.unopened(error, time.monotonic())
        else:
            self._session.connection.opened()

    def _patience(self) -> float | None:
        if self._outbox:
            return RETRY_SEND
        due = min(self._session.next_due(), self._attempts.next_due())
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def _execute(self) -> None:
        while instructions := self._attempts.take(time.monotonic()):
            for instruction in instructions:
                match instruction:
                    case Send(message):
                        self._outbox.append(encode(message, self._session.connection.version))
                    case Connect(endpoint):
                        self._connect(endpoint)
                    case Deliver():
                        self._deliver(instruction)
        while self._line and self._outbox and self._line[0].send(NO_TARGET, self._outbox[0]) is Delivery.SENT:
            self._outbox.popleft()

    def _deliver(self, instruction: Deliver) -> None:
        sink = self._sinks.get(instruction.key)
        if sink is None:
            return
        if isinstance(instruction.event, FINAL):
            del self._sinks[instruction.key]
        sink.put(instruction.event)
