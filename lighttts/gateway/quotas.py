"""What the holder of an API key may ask for: requests at once, and new ones a minute. The broker has quotas of its own,
but to it the gateway is one client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lighttts.bucket import Bucket
from lighttts.gateway.failures import RETRY_S, Refused
from lighttts.gateway.keys import ApiKey


class Quotas:
    """The use of each key. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}

    @contextmanager
    def admitted(self, key: ApiKey | None) -> Iterator[None]:
        """Counts one request of `key`, for as long as it lasts; without keys nobody is counted.

        Raises `Refused` with 429 when it may not begin now.
        """
        if key is None:
            yield
            return
        self._charge(key)
        self._busy[key.name] = self._busy.get(key.name, 0) + 1
        try:
            yield
        finally:
            self._busy[key.name] -= 1
            if not self._busy[key.name]:
                del self._busy[key.name]

    def _charge(self, key: ApiKey) -> None:
        if self._busy.get(key.name, 0) >= key.requests:
            text = f"this API key may have {key.requests} requests at once: wait until one has ended"
            raise Refused(429, "too_many_requests", text, retry_after=RETRY_S)
        now = self._clock()
        bucket = self._buckets.get(key.name)
        if bucket is None or bucket.per_minute != key.per_minute:
            bucket = self._buckets[key.name] = Bucket(key.per_minute, key.per_minute, now)
        wait = bucket.wait(now)
        if wait > 0:
            text = f"this API key may begin {key.per_minute} requests a minute: try again later"
            raise Refused(429, "too_many_requests", text, retry_after=wait)
        bucket.take(now)
