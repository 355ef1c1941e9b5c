"""A connection to a broker that outlives a mismatch: libzmq never tries again after one, though its reason may pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from lighttts.errors import LightTTSError
from lighttts.logs import Logger
from lighttts.transport.reactor import MessageHandler, Reactor
from lighttts.transport.transport import Delivery, Frames, Link, Sockets
from lighttts.transport.watch import Connection, connection_event

REOPEN = 1.0
"""Seconds after a mismatch until another socket is opened: the broker may have got keys, or this worker."""


class Address(NamedTuple):
    """A broker's endpoints for workers."""

    workers: str
    results: str


class Sender(Protocol):
    """Where messages to a broker go."""

    def send(self, target: bytes, frames: Frames) -> Delivery: ...


class Connector:
    """Sends over a watched socket made by `open`, and tells `happened` what becomes of its connection.

    `received` gets what comes in, if anything does. After a mismatch another socket takes the place of the first.
    Raises `ConfigError` as `open` does.
    """

    def __init__(
        self,
        reactor: Reactor,
        sockets: Sockets,
        open: Callable[[], tuple[Link, Link]],
        happened: Callable[[Connection], None],
        log: Logger,
        received: MessageHandler | None = None,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._open = open
        self._happened = happened
        self._log = log
        self._received = received
        self._told: set[str] = set()
        self._reopening = False
        self.connected = False
        """Whether the connection stands."""
        self._link, self._events = open()
        self._start()

    def _start(self) -> None:
        self._reactor.add(self._events, self._event)
        if self._received:
            self._reactor.add(self._link, self._received)

    def send(self, target: bytes, frames: Frames) -> Delivery:
        """As the socket's; FULL while there is no connection."""
        return self._link.send(target, frames)

    def _event(self, _peer: bytes, frames: list[bytes]) -> None:
        event = connection_event(frames)
        match event:
            case Connection.MADE:
                self.connected = True
                self._told.clear()
            case Connection.LOST:
                self.connected = False
            case Connection.REFUSED:
                self._tell("the broker ended the handshake: it does not take this worker's key, or is restarting")
            case Connection.MISMATCHED:
                self._tell("the handshake failed: broker and worker both need security.keys, of one broker, or neither")
                self._reopen_later()
        self._happened(event)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._log.warning(text, endpoint=self._link.endpoint)

    def _reopen_later(self) -> None:
        if not self._reopening:
            self._reopening = True
            self._reactor.after(REOPEN, self._reopen)

    def _reopen(self) -> None:
        self._reopening = False
        try:
            link, events = self._open()
        except LightTTSError as error:
            self._log.error("cannot connect to the broker again", endpoint=self._link.endpoint, error=error.text)
            self._reopen_later()
            return
        before = self._link, self._events
        self._link, self._events = link, events
        self._start()
        for transport in before:
            self._reactor.remove(transport)
        self._sockets.discard(*before)
