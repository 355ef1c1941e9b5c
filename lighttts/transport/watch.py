"""Events of a connection: whether a peer is there now, which a socket by itself never tells.

libzmq reconnects in silence and forgets what was in flight; a client that waits for an answer must know.
"""

from __future__ import annotations

import enum
import functools
import operator
import struct
from collections.abc import Sequence

import zmq

from lighttts.errors import ProtocolError
from lighttts.transport.schema import Buffer

_EVENT = struct.Struct("=HI")


class Connection(enum.Enum):
    """What became of a connection."""

    MADE = enum.auto()
    REFUSED = enum.auto()
    """The handshake was ended: for want of an allowed key, or because the other side died; tried again after `LOST`."""
    MISMATCHED = enum.auto()
    """One side wants keys and the other has none, or it speaks another language; never tried again after `LOST`."""
    LOST = enum.auto()


_MEANING = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Connection.MADE,
    zmq.EVENT_DISCONNECTED: Connection.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Connection.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Connection.MISMATCHED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Connection.MISMATCHED,
}
WATCHED_EVENTS = functools.reduce(operator.or_, _MEANING)
ENTRANCE_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
"""Of a bound socket's connections. Not that one could not be accepted, which is told again and again until it can."""


def entrance_event(frames: Sequence[Buffer]) -> tuple[int, int]:
    """What a message of `Sockets.entrance`'s link says: one of `ENTRANCE_EVENTS`, and of which descriptor."""
    if len(frames) != 2 or len(frames[0]) != _EVENT.size:
        raise ProtocolError("not an event of a connection")
    event, value = _EVENT.unpack(frames[0])
    return event, value


def connection_event(frames: Sequence[Buffer]) -> Connection:
    """What a message of `Sockets.watched_dealer`'s second link says."""
    if len(frames) != 2 or len(frames[0]) != _EVENT.size:
        raise ProtocolError("not an event of a connection")
    return _MEANING[_EVENT.unpack(frames[0])[0]]
