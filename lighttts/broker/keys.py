"""Every key the broker uses in Redis. The braces put a request's keys into one slot of a cluster.

request   hash: client (routing id), synth (message), state, received (Unix time in seconds)
encoded   string: the `Encoded` message
tokens    hash: sequence number -> `Tokens` message

A message is a msgpack array of its frames. All keys live `broker.state_ttl_s` after the last write to them.
"""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "lighttts:"


class RequestKeys(NamedTuple):
    """The keys of one request."""

    request: str
    encoded: str
    tokens: str


def keys_of(request_id: str) -> RequestKeys:
    """The keys of the request with that id."""
    base = f"{PREFIX}{{{request_id}}}:"
    return RequestKeys(f"{base}request", f"{base}encoded", f"{base}tokens")
