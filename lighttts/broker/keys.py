"""Every key the broker uses in Redis. The braces put a request's keys into one slot of a cluster.

request   hash: owner (the broker it belongs to; empty once released), client (who it is), synth (message), state,
          received (Unix time in s)
encoded   string: the `Encoded` message
tokens    hash: sequence number -> `Tokens` message; the numbers are 0, 1, 2, ... without a gap
lease     string: there while the broker of that name lives

Registered voices, all in one slot, live until they are removed:
of        hash, one for each owner: a voice's name -> its record
shared    hash: a shared voice's name -> its record
use       hash: owner -> how many voices it has, and their bytes
recording string, one for each voice: an audio file

A message is a msgpack array of its frames. A request's keys live `broker.state_ttl_s` after the last write to any of
them, or a few seconds after its release; a lease as long as its broker says.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

PREFIX = "lighttts:"
LEASE = f"{PREFIX}lease:"
EVERY_REQUEST = f"{PREFIX}{{*"
"""The pattern of all requests' keys."""
VOICES = f"{PREFIX}voices:{{voices}}:"
SHARED_VOICES = f"{VOICES}shared"
USE_OF_VOICES = f"{VOICES}use"


class RequestKeys(NamedTuple):
    """The keys of one request."""

    request: str
    encoded: str
    tokens: str


def keys_of(request_id: str) -> RequestKeys:
    """The keys of the request with that id."""
    base = f"{PREFIX}{{{request_id}}}:"
    return RequestKeys(f"{base}request", f"{base}encoded", f"{base}tokens")


def lease_of(owner: str) -> str:
    """The key of that broker's lease."""
    return f"{LEASE}{owner}"


def request_of(key: bytes) -> str | None:
    """The id of the request that `key` belongs to; None if it is no request's key."""
    try:
        base, _, _ = key.decode().rpartition(":")
    except UnicodeDecodeError:
        return None
    request_id = base[len(PREFIX) + 1 : -1]
    return request_id if key.decode() in keys_of(request_id) else None


def voices_of(owner: str) -> str:
    """The key of an owner's voices."""
    return f"{VOICES}of:{owner_field(owner)}"


def owner_field(owner: str) -> str:
    """What stands for an owner in keys and fields."""
    return hashlib.sha256(owner.encode()).hexdigest()


def recording_of(voice_id: str) -> str:
    """The key of a voice's recording."""
    return f"{VOICES}recording:{voice_id}"
