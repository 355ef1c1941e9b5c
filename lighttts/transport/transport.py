"""`Sockets`: everything a process binds and connects, in one ZeroMQ context, as the transports of `links`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TypeVar

import zmq

from lighttts.transport.guests import Guests
from lighttts.transport.links import NO_TARGET, Delivery, Frames, Link, Router, Transport, ZmqTransport
from lighttts.transport.security import Domain, Gatekeeper, Guard, Proof, guard_socket, prove_socket
from lighttts.transport.sockets import IpcLock, SocketOptions, bind, connect, make_socket
from lighttts.transport.watch import ENTRANCE_EVENTS, WATCHED_EVENTS

__all__ = ["NO_TARGET", "Delivery", "Frames", "Link", "Router", "Sockets", "Transport"]

_MONITORS = itertools.count()
T = TypeVar("T", bound=ZmqTransport)


class Sockets:
    """A process' ZeroMQ context and everything opened from it; `close` ends all within the bounded linger time.

    With a `Guard` every tcp socket bound here takes only connections that prove an allowed key, with a `Proof` every
    tcp socket connected here proves its own. ipc sockets are guarded by the permissions of their files.
    """

    def __init__(self, options: SocketOptions | None = None, security: Guard | Proof | None = None) -> None:
        self.options = options or SocketOptions()
        self._security = security
        self._gatekeeper: Gatekeeper | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 65535)
        self._open: list[ZmqTransport] = []

    def router(self, endpoint: str, domain: Domain | None = None) -> Router:
        """A ROUTER bound to `endpoint`, for those that `domain` admits. Raises `ConfigError`."""
        return self._keep(Router(*self._bound(zmq.ROUTER, endpoint, domain)))

    def pull(self, endpoint: str, domain: Domain | None = None) -> Link:
        """A PULL bound to `endpoint`, for those that `domain` admits. Raises `ConfigError`."""
        return self._keep(Link(*self._bound(zmq.PULL, endpoint, domain)))

    def dealer(self, endpoint: str, identity: bytes = b"") -> Link:
        """A DEALER connected to `endpoint`. Raises `ConfigError`."""
        return self._keep(Link(self._connected(zmq.DEALER, endpoint, identity), endpoint))

    def watched_dealer(self, endpoint: str, identity: bytes = b"") -> tuple[Link, Link]:
        """A DEALER as `dealer` makes it, and a link that receives its `watch.connection_event`s. Raises
        `ConfigError`."""
        return self._watched(zmq.DEALER, endpoint, identity)

    def push(self, endpoint: str) -> Link:
        """A PUSH connected to `endpoint`. Raises `ConfigError`."""
        return self._keep(Link(self._connected(zmq.PUSH, endpoint, b""), endpoint))

    def watched_push(self, endpoint: str) -> tuple[Link, Link]:
        """A PUSH as `push` makes it, and a link that receives its `watch.connection_event`s. Raises `ConfigError`."""
        return self._watched(zmq.PUSH, endpoint, b"")

    def entrance(self, transport: Router | Link) -> Link:
        """A link that receives what becomes of the connections of a bound tcp socket; see `entrance`."""
        address = f"inproc://entrance-{len(self._open)}"
        transport.socket.monitor(address, ENTRANCE_EVENTS)
        events = self._context.socket(zmq.PAIR)
        # Without a limit: libzmq waits for room to tell an event, and serves no connection meanwhile.
        events.rcvhwm = 0
        events.connect(address)
        return self._keep(Link(events, transport.endpoint))

    def discard(self, link: Link, events: Link) -> None:
        """Closes a watched socket and its events before the others; whoever polls them must have let go of them."""
        # In this order: a socket that has an event to tell would wait for one who listens.
        for transport in (link, events):
            transport.close()
            self._open.remove(transport)

    def close(self) -> None:
        """Closes every socket and the context."""
        for transport in self._open:
            transport.close()
        if self._gatekeeper:
            self._gatekeeper.close()
            self._gatekeeper = None
        self._context.term()
        for transport in self._open:
            transport.unlock()
        self._open.clear()

    def __enter__(self) -> Sockets:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _bound(
        self, kind: int, endpoint: str, domain: Domain | None
    ) -> tuple[zmq.Socket[bytes], str, IpcLock | None, Guests | None]:
        socket = make_socket(self._context, kind, self.options)
        standing = None
        try:
            if isinstance(self._security, Guard) and endpoint.startswith("tcp://"):
                standing = self._guard(socket, self._security, domain)
            bound, lock = bind(socket, endpoint, self.options)
            return socket, bound, lock, Guests(int(bound.rpartition(":")[2]), standing) if standing else None
        except BaseException:
            socket.close(0)
            raise

    def _guard(self, socket: zmq.Socket[bytes], guard: Guard, domain: Domain | None) -> Callable[[], frozenset[str]]:
        """Guards a socket about to be bound; returns what tells the keys whose connections may stay."""
        if domain is None:
            raise ValueError("a guarded socket needs a domain")
        if self._gatekeeper is None:
            self._gatekeeper = Gatekeeper(self._context, guard)
        guard_socket(socket, guard.folder, domain)
        return functools.partial(self._gatekeeper.standing, domain)

    def _watched(self, kind: int, endpoint: str, identity: bytes) -> tuple[Link, Link]:
        socket = make_socket(self._context, kind, self.options)
        # By default its address follows from the descriptor's number, which may be that of a socket just closed.
        monitor = socket.get_monitor_socket(WATCHED_EVENTS, f"inproc://monitor-{next(_MONITORS)}")
        events = Link(monitor, endpoint)
        try:
            self._connect(socket, endpoint, identity)
        except BaseException:
            events.close()
            raise
        self._keep(events)
        return self._keep(Link(socket, endpoint)), events

    def _connected(self, kind: int, endpoint: str, identity: bytes) -> zmq.Socket[bytes]:
        return self._connect(make_socket(self._context, kind, self.options), endpoint, identity)

    def _connect(self, socket: zmq.Socket[bytes], endpoint: str, identity: bytes) -> zmq.Socket[bytes]:
        try:
            if isinstance(self._security, Proof) and endpoint.startswith("tcp://"):
                prove_socket(socket, self._security)
            connect(socket, endpoint, identity)
        except BaseException:
            socket.close(0)
            raise
        return socket

    def _keep(self, transport: T) -> T:
        self._open.append(transport)
        return transport
