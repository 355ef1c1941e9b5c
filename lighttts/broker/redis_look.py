"""Looks into Redis for what a broker finds there: records, and damaged ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis

from lighttts.broker.instructions import AppendTokens, SaveEncoded, SaveRequest, SaveState
from lighttts.broker.keys import EVERY_REQUEST, keys_of, lease_of, request_of
from lighttts.broker.redis_faults import remedy
from lighttts.broker.redis_records import Damaged, Outcome, Raw, Records, is_wrong_type, saved
from lighttts.broker.state import Claim, Loaded
from lighttts.errors import Unavailable

SCANNED = 1000
REHEARSAL_S = 10.0


_CLAIMS = {Outcome.DONE: Claim.OURS, Outcome.BROKEN: Claim.ABSENT, Outcome.FOREIGN: Claim.FOREIGN}


class Look:
    """Every call waits for Redis, and raises `Unavailable` when it does not answer."""

    def __init__(self, client: redis.Redis, records: Records, owner: str, where: str) -> None:
        self._client = client
        self._records = records
        self._owner = owner
        self._where = where

    def load(self, *request_ids: str) -> Loaded:
        """Every record, or those of these requests. Damaged ones are removed, except those of brokers that live."""
        loaded = Loaded({}, {})
        with self._asking():
            for request_id in request_ids or self._request_ids():
                self._load(request_id, loaded)
        return loaded

    def claim(self, request_id: str, lease_s: float) -> Claim:
        """Makes a record this broker's, with a lease of so many seconds, if nobody who lives owns it."""
        with self._asking():
            return _CLAIMS[self._records.claim(request_id, lease_s)]

    def release(self) -> None:
        """Gives the lease back, if Redis answers: else it runs out."""
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.delete(lease_of(self._owner))

    def rehearse(self) -> None:
        """Does all that a broker does, with a record of its own, which it removes. Raises `RedisError`, `OSError`."""
        request_id = self._owner
        self._records.load_scripts()
        with self._client.pipeline(transaction=False) as pipe:
            self._records.add_lease(pipe, REHEARSAL_S)
            for write in (
                SaveRequest(request_id, b"", [b""]),
                SaveState(request_id, "rehearsed"),
                SaveEncoded(request_id, [b""]),
                AppendTokens(request_id, 0, [b""]),
            ):
                self._records.add(pipe, [write])
            pipe.execute()
        self._client.scan(match=EVERY_REQUEST, count=1)
        self._read(request_id)
        self._records.claim(request_id, REHEARSAL_S)
        self._records.discard(request_id)
        self._client.delete(lease_of(self._owner))

    def _request_ids(self) -> set[str]:
        keys = self._client.scan_iter(match=EVERY_REQUEST, count=SCANNED)
        return {request_id for key in keys if (request_id := request_of(key)) is not None}

    def _read(self, request_id: str) -> Raw:
        """A record as it is at one moment. Raises `Damaged` when a key is of another type."""
        keys = keys_of(request_id)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.request)
            pipe.get(keys.encoded)
            pipe.hgetall(keys.tokens)
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if is_wrong_type(answer):
                raise Damaged(str(answer))
            if isinstance(answer, Exception):
                raise answer
        return Raw(*answers)

    def _load(self, request_id: str, loaded: Loaded) -> None:
        try:
            raw = self._read(request_id)
            if any(raw):
                loaded.requests[request_id] = saved(request_id, raw)
        except Damaged as error:
            self._records.discard(request_id)
            loaded.damaged[request_id] = str(error)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis at {self._where} fails ({error}): {remedy(error)}") from error
