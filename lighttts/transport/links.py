"""`Transport`: sends a message to a target, receives messages within a budget, broadcasts to all peers with a count.

The rest of the system sees only this interface and `wire`; the ZeroMQ implementation is below it. A transport belongs
to one thread.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Protocol

import zmq

from lighttts.errors import ProtocolError
from lighttts.transport.guests import Guest, Guests
from lighttts.transport.schema import Buffer
from lighttts.transport.sockets import IpcLock
from lighttts.transport.wire import OLDEST, VERSION, translate, version_of

Frames = Sequence[Buffer]
NO_TARGET = b""
COPY_BYTES = 64 << 10
"""Smaller frames are copied, which is faster; larger ones are handed over and must not be changed afterwards."""
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)


class Delivery(enum.Enum):
    """What became of a sent message: queued for the peer, not taken because its queue is full, or no such peer."""

    SENT = enum.auto()
    FULL = enum.auto()
    GONE = enum.auto()


class Transport(Protocol):
    """One endpoint's messages. `target` is a routing id, or `NO_TARGET` where there is only one peer."""

    endpoint: str

    def send(self, target: bytes, frames: Frames) -> Delivery: ...

    def receive(self, budget: int) -> Iterator[tuple[bytes, list[bytes]]]: ...

    def broadcast(self, frames: Frames) -> int: ...

    def close(self) -> None: ...


def _send(socket: zmq.Socket[bytes], frames: Frames) -> None:
    """Queues one message. As pyzmq's `send_multipart`, which takes twice the time for combining enum flags."""
    send = socket.send
    for frame in frames[:-1]:
        send(frame, _MORE, len(frame) < COPY_BYTES)
    send(frames[-1], _LAST, len(frames[-1]) < COPY_BYTES)


class ZmqTransport:
    """What the ZeroMQ transports share: the socket, its life, and draining it without blocking."""

    routed = False

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, lock: IpcLock | None = None) -> None:
        self.socket = socket
        self.endpoint = endpoint
        self._lock = lock

    def receive(self, budget: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yields (peer, frames) of at most `budget` waiting messages; never blocks."""
        receive = self.socket.recv_multipart
        for _ in range(budget):
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self.routed:
                peer = frames.pop(0)
                self._met(peer, frames)
                yield peer, frames
            else:
                yield NO_TARGET, frames

    def _met(self, peer: bytes, frames: Frames) -> None:
        """A message of `peer` has arrived."""

    def close(self) -> None:
        """Closes the socket; messages still queued have the bounded linger time to leave."""
        self.socket.close()

    def unlock(self) -> None:
        """Gives an ipc path free for others: only when libzmq has ended, which removes the path in its own time."""
        if self._lock:
            self._lock.release()
            self._lock = None


class Router(ZmqTransport):
    """A bound ROUTER: many peers, each addressed by its routing id. `peers`: those heard and not known to be gone.

    Each is answered in the protocol version it speaks. `guests`: if given, its peers have proved keys.
    """

    routed = True

    def __init__(
        self, socket: zmq.Socket[bytes], endpoint: str, lock: IpcLock | None, guests: Guests | None = None
    ) -> None:
        super().__init__(socket, endpoint, lock)
        self.peers: set[bytes] = set()
        self.guests = guests
        self._users: dict[bytes, str] = {}
        self._versions: dict[bytes, int] = {}
        """Of the peers that speak an older one than ours."""

    def receive(self, budget: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yields (peer, frames) of at most `budget` waiting messages; never blocks."""
        return self._receive_from(self.guests, budget) if self.guests else super().receive(budget)

    def _receive_from(self, guests: Guests, budget: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """As `receive`, and learns who each peer is, which only a frame that is not copied says."""
        for _ in range(budget):
            try:
                first = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer, frames = first.bytes, self.socket.recv_multipart(zmq.NOBLOCK)
            guest = guests.welcome(first, peer)
            if guest:
                self._users[peer] = guest.user
                self._met(peer, frames)
                yield peer, frames

    def expel(self) -> set[Guest]:
        """Ends the connections whose keys are not allowed any more; returns those ended since the last call."""
        expelled = self.guests.expel() if self.guests else set()
        for guest in expelled:
            self.forget(guest.peer)
        return expelled

    def user(self, peer: bytes) -> str:
        """The name under which the key of `peer` is allowed; empty if it is not in `peers`, or needs no key."""
        return self._users.get(peer, "")

    def _met(self, peer: bytes, frames: Frames) -> None:
        self.peers.add(peer)
        version = version_of(frames)
        if version == OLDEST:
            self._versions[peer] = version
        elif version == VERSION and self._versions:
            self._versions.pop(peer, None)

    def send(self, target: bytes, frames: Frames) -> Delivery:
        """Queues `frames` for `target`; never blocks, never drops in silence."""
        version = self._versions.get(target)
        try:
            if version:
                frames = translate(frames, version)
            _send(self.socket, (target, *frames))
        except zmq.Again:
            return Delivery.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.forget(target)
            return Delivery.GONE
        except ProtocolError:
            # It speaks an older version than when it was chosen for this: whom that was sent to is not there any more.
            self.forget(target)
            return Delivery.GONE
        return Delivery.SENT

    def broadcast(self, frames: Frames) -> int:
        """Sends to every peer; returns how many it was queued for."""
        return sum(self.send(peer, frames) is Delivery.SENT for peer in tuple(self.peers))

    def forget(self, peer: bytes) -> None:
        """Drops `peer` from the broadcast list."""
        self.peers.discard(peer)
        self._users.pop(peer, None)
        self._versions.pop(peer, None)


class Link(ZmqTransport):
    """A socket with one side on the other end: DEALER (both ways), PUSH (out) or a bound PULL (in).

    `guests`: if given, those who push have proved keys.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], endpoint: str, lock: IpcLock | None = None, guests: Guests | None = None
    ) -> None:
        super().__init__(socket, endpoint, lock)
        self.guests = guests

    def receive(self, budget: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yields (`NO_TARGET`, frames) of at most `budget` waiting messages; never blocks."""
        return self._receive_from(self.guests, budget) if self.guests else super().receive(budget)

    def _receive_from(self, guests: Guests, budget: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """As `receive`, without the messages of keys that are not allowed any more."""
        for _ in range(budget):
            try:
                first = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames = [first.bytes]
            if first.more:
                frames += self.socket.recv_multipart(zmq.NOBLOCK)
            if guests.welcome(first):
                yield NO_TARGET, frames

    def expel(self) -> set[Guest]:
        """Ends the connections whose keys are not allowed any more; returns those ended since the last call."""
        return self.guests.expel() if self.guests else set()

    def send(self, target: bytes, frames: Frames) -> Delivery:
        """Queues `frames` (`target` must be `NO_TARGET`); FULL also while there is no connection."""
        if target != NO_TARGET:
            raise ValueError("a link has one peer: send to NO_TARGET")
        try:
            _send(self.socket, frames)
        except zmq.Again:
            return Delivery.FULL
        return Delivery.SENT

    def broadcast(self, frames: Frames) -> int:
        """As `send`; returns 1 if it was queued."""
        return int(self.send(NO_TARGET, frames) is Delivery.SENT)
