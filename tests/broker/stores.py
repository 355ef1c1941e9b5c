"""Stores on a real Redis: what is written to them, and what they tell."""

from __future__ import annotations

import queue

from prometheus_client import REGISTRY

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveEncoded, SaveRequest, SaveState, Write
from lighttts.broker.redis_store import Limits, RedisStore
from lighttts.broker.state import Claim, StoreEvents
from lighttts.errors import LightTTSError
from tests.broker.harness import CLIENT, encoded, raw, synth, tokens

WAIT_S = 20.0
QUICK = Limits(breaker_failures=2, breaker_s=0.2)
"""Redis is given up soon, and tried again soon."""


def record_of(request_id: str) -> tuple[Write, ...]:
    """All writes of a request that is being decoded."""
    return (
        SaveRequest(request_id, CLIENT, raw(synth(request_id))),
        SaveState(request_id, "encoding"),
        SaveEncoded(request_id, raw(encoded(request_id, 1))),
        AppendTokens(request_id, 0, raw(tokens(request_id, 2, 0))),
        AppendTokens(request_id, 1, raw(tokens(request_id, 2, 1, last=True))),
        SaveState(request_id, "decoding"),
    )


def metric(name: str, **labels: str) -> float:
    """A metric's value now."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Told:
    """What the store tells, as queues to wait on."""

    def __init__(self) -> None:
        self.stored: queue.Queue[tuple[str, LightTTSError | None]] = queue.Queue()
        self.changed: queue.Queue[str] = queue.Queue()
        self.lost: queue.Queue[str] = queue.Queue()
        self.crashed: queue.Queue[BaseException] = queue.Queue()
        self.events = StoreEvents(
            lambda request_id, error: self.stored.put((request_id, error)),
            self.changed.put,
            self.lost.put,
            self.crashed.put,
        )


def open_store(url: str, told: Told, limits: Limits = QUICK, *, owner: str = "me", ttl: float = 3600.0) -> RedisStore:
    """The store of a broker of that name."""
    return RedisStore(url, ttl, owner, told.events, limits)


def write_safely(store: RedisStore, told: Told, *writes: Write) -> None:
    """Writes and waits until all of it is in Redis: a last record is only confirmed when those before it are, and only
    told to be absent when it has been deleted."""
    for write in writes:
        store.write(write)
    store.write(SaveRequest("last", b"", [b""]))
    while (told.stored.get(timeout=WAIT_S)) != ("last", None):
        pass
    store.write(DeleteRequest("last"))
    assert store.claim("last") is Claim.ABSENT
