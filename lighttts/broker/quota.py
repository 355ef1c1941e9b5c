"""What one client may ask for: requests at once, and requests a minute by a token bucket for each client.

A client is told apart by the key that `key` makes of its routing id: the connection itself, unless another function is
given that knows who is behind a connection (a CURVE user id), which then shares the quota over its connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lighttts.broker.pace import Pace
from lighttts.broker.requests import CLOSED, RequestTable
from lighttts.bucket import Bucket
from lighttts.errors import Overloaded

KEYS_KEPT = 10_000
"""Most buckets kept; the one used longest ago gives way. A bucket that is full again is not kept at all."""


KEYED = b"key "
"""How the name of a client begins that has proved a key."""


def by_connection(client: bytes) -> bytes:
    """Each connection is a client."""
    return client


class Quotas:
    """`at_once` requests in progress and `per_minute` new ones for each client."""

    def __init__(self, at_once: int, per_minute: int, key: Callable[[bytes], bytes] = by_connection) -> None:
        self._at_once = at_once
        self._per_minute = per_minute
        self._key = key
        self._buckets: dict[bytes, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, client: bytes, requests: RequestTable, pace: Pace, now: float) -> None:
        """Raises `Overloaded` when `client` may not begin another request now."""
        key = self._key(client)
        busy = self._in_progress(key, requests)
        if busy >= self._at_once:
            text = f"this client has {busy} requests in progress and may have no more: wait until one has ended"
            raise Overloaded(text, retry_after=pace.soon(now, busy / len(requests.live)))
        bucket = self._buckets.get(key)
        wait = bucket.wait(now) if bucket else 0.0
        if wait > 0:
            text = f"this client has begun more than {self._per_minute} requests a minute: try again later"
            raise Overloaded(text, retry_after=wait)

    def charge(self, client: bytes, now: float) -> None:
        """`client` has begun a request."""
        key = self._key(client)
        bucket = self._buckets.pop(key, None) or Bucket(self._per_minute, self._per_minute, now)
        bucket.take(now)
        self._buckets[key] = bucket
        if len(self._buckets) > KEYS_KEPT:
            del self._buckets[next(iter(self._buckets))]

    def tick(self, now: float) -> None:
        """Drops the buckets that are full again: they say nothing."""
        full = [key for key, bucket in self._buckets.items() if bucket.level(now) >= self._per_minute]
        for key in full:
            del self._buckets[key]

    def _in_progress(self, key: bytes, requests: RequestTable) -> int:
        mine: Iterable[bytes] = (client for client in requests.clients if self._key(client) == key)
        return sum(request.state not in CLOSED for client in mine for request in requests.clients[client].values())
