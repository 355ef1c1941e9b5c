"""How many tcp connections a bound socket holds: libzmq accepts all that come, until no descriptor is left.

Then it accepts nobody, turns in circles meanwhile, and ends the process if it listens on an ipc path too. So each
connection is counted from the moment it is accepted, and when there are too many one of them is hung up.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence

import zmq

from lighttts.transport.guests import hang_up
from lighttts.transport.schema import Buffer
from lighttts.transport.security import Domain
from lighttts.transport.transport import Link, Router, Sockets
from lighttts.transport.watch import entrance_event

SPEAK_S = 10.0
"""Seconds in which whoever has connected must say something, where everybody who belongs there does."""
RESERVE = 256
"""Descriptors kept for all but the connections that are counted here."""
LEAST = 16
"""Connections that a socket has room for, however few descriptors there are."""
KEYS_AT_LEAST = 4
"""Keys that can share a socket: none of them gets more than its part of the connections."""
SLACK_S = 1.0


class Crowd:
    """The connections of one socket by descriptor, at most `most`. Times are monotonic seconds.

    A connection is silent until it is `heard`, which nobody is without an allowed key. When there are too many, the one
    that has been silent longest makes room, or without such the newest: so nobody without a key keeps others out, but
    by being faster than a handshake. Who is silent for `patience_s` is hung up if `must_speak`, else taken to belong
    here; with 0 nobody counts as silent.
    """

    def __init__(self, most: int, patience_s: float, *, must_speak: bool, end: Callable[[int], None]) -> None:
        self._most = most
        self._patience_s = patience_s
        self._must_speak = must_speak
        self._end = end
        self._open: set[int] = set()
        self._silent: dict[int, float] = {}
        self.turned_away = 0
        """Connections hung up so far for want of room or of words."""

    def __len__(self) -> int:
        return len(self._open)

    def accepted(self, descriptor: int, now: float) -> None:
        """A connection is there."""
        self.closed(descriptor)
        self._open.add(descriptor)
        if self._patience_s:
            self._silent[descriptor] = now
        if len(self._open) > self._most:
            self._turn_away(next(iter(self._silent), descriptor))

    def heard(self, descriptor: int) -> None:
        """A connection has shown that it belongs here."""
        self._silent.pop(descriptor, None)

    def closed(self, descriptor: int) -> None:
        """A connection is gone."""
        self._open.discard(descriptor)
        self._silent.pop(descriptor, None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        while self._silent:
            descriptor, since = next(iter(self._silent.items()))
            if now - since < self._patience_s:
                return
            if self._must_speak:
                self._turn_away(descriptor)
            else:
                self.heard(descriptor)

    def _turn_away(self, descriptor: int) -> None:
        self.turned_away += 1
        self.closed(descriptor)
        self._end(descriptor)


class Entrance:
    """Keeps a bound tcp socket to `most` connections, of one key to a quarter of them.

    `events` is to be polled, each message of it given to `happened`; `tick` to be called about once a second.
    """

    def __init__(
        self, sockets: Sockets, transport: Router | Link, domain: Domain, most: int, clock: Callable[[], float]
    ) -> None:
        self.domain = domain
        self.most = most
        self.events = sockets.entrance(transport)
        self._clock = clock
        self._guests = guests = transport.guests
        port = int(transport.endpoint.rpartition(":")[2])
        everybody_speaks = domain is not Domain.RESULTS
        proof_s = sockets.options.handshake_ms / 1000 + SLACK_S
        patience_s = (SPEAK_S if everybody_speaks else proof_s) if guests else 0.0
        self._crowd = Crowd(most, patience_s, must_speak=everybody_speaks, end=lambda fd: hang_up(fd, port))
        if guests:
            guests.limit(max(1, most // KEYS_AT_LEAST), self._crowd.heard)
        self._told = 0

    def __len__(self) -> int:
        return len(self._crowd)

    def happened(self, _: bytes, frames: Sequence[Buffer]) -> None:
        """Takes in a message of `events`."""
        event, value = entrance_event(frames)
        if event == zmq.EVENT_ACCEPTED:
            self._crowd.accepted(value, self._clock())
        else:
            self._crowd.closed(value)
            if self._guests:
                self._guests.closed(value)

    def tick(self) -> int:
        """Time has passed. Returns how many connections were turned away since the last call."""
        self._crowd.tick(self._clock())
        turned_away = self._crowd.turned_away + (self._guests.crowded_out if self._guests else 0)
        news, self._told = turned_away - self._told, turned_away
        return news


def open_entrances(
    sockets: Sockets, transports: Mapping[Domain, Router | Link], clock: Callable[[], float]
) -> list[Entrance]:
    """An entrance for each bound transport that listens on tcp; their limits leave descriptors for all else."""
    counted = {domain: transport for domain, transport in transports.items() if transport.endpoint.startswith("tcp://")}
    most = room(len(counted), sockets.options.connections)
    return [Entrance(sockets, transport, domain, most, clock) for domain, transport in counted.items()]


def room(sockets: int, wanted: int) -> int:
    """How many connections each of `sockets` sockets may have: `wanted`, or fewer if descriptors are scarce."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(LEAST, min(wanted, (limit - RESERVE) // max(1, sockets)))
