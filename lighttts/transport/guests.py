"""The connections of a guarded socket, each with the key it came in by, so that they end when the key is removed.

ZeroMQ has no call that ends one connection of many. What it has is the descriptor of the connection a message came by:
shutting that down looks to libzmq like a peer that hung up, which it handles as ever. Descriptors are used again, so
one is touched only while it is the very socket it was when its message came.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import zmq

KEY_PROPERTY = "X-Key"
"""Under which the gatekeeper's answer tells a connection's messages the public key (Z85) that it proved."""


class Guest(NamedTuple):
    """A connection: routing id (empty where there is none), name and key of who made it, descriptor and its inode."""

    peer: bytes
    user: str
    key: str
    descriptor: int
    inode: int


class Guests:
    """The connections of the socket bound to `port` that have said something. For the thread of that socket.

    `standing` gives the keys whose connections may stand, the same object until it changes.
    """

    def __init__(self, port: int, standing: Callable[[], frozenset[str]]) -> None:
        self.port = port
        self.crowded_out = 0
        """Connections ended so far because their key had too many."""
        self._standing = standing
        self._checked = standing()
        self._by_descriptor: dict[int, Guest] = {}
        self._by_key: defaultdict[str, set[int]] = defaultdict(set)
        self._most_of_key = sys.maxsize
        self._heard: Callable[[int], None] = lambda _: None
        self._ended: set[Guest] = set()

    def limit(self, most_of_key: int, heard: Callable[[int], None]) -> None:
        """Ends further connections of a key that has `most_of_key`, provided that `closed` is called; tells `heard` of
        descriptors that are guests'."""
        self._most_of_key = most_of_key
        self._heard = heard

    def welcome(self, first: zmq.Frame, peer: bytes = b"") -> Guest | None:
        """Who has sent a message, from its `first` frame; None if its connection was ended, for the key is not allowed
        any more or has too many: the message must not be used."""
        key, descriptor = str(first.get(KEY_PROPERTY)), int(first.get(zmq.SRCFD))
        guest = self._by_descriptor.get(descriptor)
        if guest and guest.key == key and guest.peer == peer:
            return guest
        guest = Guest(peer, str(first.get("User-Id")), key, descriptor, _inode(descriptor))
        if key not in self._standing():
            self._expel(guest)
            return None
        self._remove(descriptor)
        if len(self._by_key[key]) >= self._most_of_key:
            self.crowded_out += 1
            self._hang_up(guest)
            return None
        self._by_key[key].add(descriptor)
        self._by_descriptor[descriptor] = guest
        self._heard(descriptor)
        return guest

    def closed(self, descriptor: int) -> None:
        """A connection is gone; unless by now another one has its descriptor, and has said something."""
        guest = self._by_descriptor.get(descriptor)
        if guest and guest.inode != _inode(descriptor):
            self._remove(descriptor)

    def expel(self) -> set[Guest]:
        """Ends the connections whose keys are not allowed any more; returns those ended since the last call."""
        standing = self._standing()
        if standing is not self._checked:
            self._checked = standing
            for guest in tuple(self._by_descriptor.values()):
                if guest.key not in standing:
                    self._expel(guest)
        ended, self._ended = self._ended, set()
        return ended

    def _expel(self, guest: Guest) -> None:
        self._remove(guest.descriptor)
        self._ended.add(guest)
        self._hang_up(guest)

    def _hang_up(self, guest: Guest) -> None:
        if guest.inode and guest.inode == _inode(guest.descriptor):
            hang_up(guest.descriptor, self.port)

    def _remove(self, descriptor: int) -> None:
        guest = self._by_descriptor.pop(descriptor, None)
        if guest is None:
            return
        self._by_key[guest.key].discard(descriptor)
        if not self._by_key[guest.key]:
            del self._by_key[guest.key]


def _inode(descriptor: int) -> int:
    """What tells this socket from a later one with the same descriptor; 0 if it is closed."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def hang_up(descriptor: int, port: int) -> None:
    """Shuts down a tcp connection to `port` that libzmq owns; nothing else, should the descriptor be one by now."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        # It was closed a moment ago, which is all that is wanted.
        return
    try:
        if borrowed.getsockname()[1] == port:
            borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The other side has hung up first.
        return
    finally:
        borrowed.detach()
