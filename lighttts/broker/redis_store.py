"""Request state in Redis, written by a thread of its own so that a slow or dead Redis never holds up the broker.

Writes wait in a bounded queue and go out in batches, in order. Every write can be repeated without harm, so a batch
that fails is tried again until it succeeds; new requests wait with it. After a few failures in a row the circuit
breaker opens: Redis is left alone for a while, new requests are refused at once, the writes of others go on waiting.

A record with a hole in it must never be read back. The record of a request is therefore given up for good, and the
request itself goes on without one, when a write to it finds no room in the queue, and when Redis has lost any part of
it (see `redis_records`): so it is with the requests under way when Redis comes back empty.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import redis
from redis.exceptions import NoScriptError

from lighttts import metrics
from lighttts.broker.backlog import Backlog
from lighttts.broker.breaker import Breaker, BreakerState
from lighttts.broker.instructions import DeleteRequest, SaveRequest, Write
from lighttts.broker.redis_address import TIMEOUT_S, connect
from lighttts.broker.redis_faults import remedy
from lighttts.broker.redis_look import Look
from lighttts.broker.redis_records import Outcome, Records, outcome_of, together
from lighttts.broker.state import Claim, Loaded, StoreEvents
from lighttts.errors import InvalidInput, Unavailable

BACKOFF_S = 0.05
"""Seconds after a first failure; doubled for each that follows."""
LONGEST_BACKOFF_S = 1.0
GATHER_S = 0.005
"""Seconds that writes wait for others to go with: many small batches would hold up the broker's loop. Whoever waits for
an answer does not."""
REFUSED_FOR_S = 0.5
"""Least time after which a refused request may come again."""
TARGET = "redis"
_SHOWN = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Limits(NamedTuple):
    """How much waits for Redis at most, how long a broker's lease lasts, and when Redis is left alone for how long."""

    writes: int = 100_000
    bytes: int = 256 << 20
    lease_s: float = 3.0
    breaker_failures: int = 5
    breaker_s: float = 5.0


class RedisStore:
    """The store of the broker `owner`, a name no other broker ever had, in the Redis at `url`.

    A request's keys live `ttl` seconds after the last write to it. Raises `Unavailable` when Redis cannot be reached,
    `ConfigError` when the URL is wrong or it does not let us in.
    """

    name = "redis"
    durable = True

    def __init__(self, url: str, ttl: float, owner: str, events: StoreEvents, limits: Limits | None = None) -> None:
        self._events = events
        self._limits = limits = limits or Limits()
        there = connect(url)
        self._redis, self._where = there.client, there.where
        self._records = Records(self._redis, owner, ttl)
        self._look = Look(self._redis, self._records, owner, self._where)
        self._condition = threading.Condition()
        self._backlog = Backlog(limits.writes, limits.bytes)
        self._renew = True
        self._awaited = False
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_s)
        self._problem = ""
        self._in_delivery = 0
        self._closing = threading.Event()
        self._close_by: float | None = None
        self._show()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()

    # ---- from any thread -----------------------------------------------------------------------------------------

    def write(self, write: Write) -> None:
        """Queues a write; never blocks on Redis."""
        with self._condition:
            new = isinstance(write, SaveRequest)
            if new and self._breaker.state is not BreakerState.CLOSED:
                self._refuse(write.request_id)
                return
            put = self._backlog.put(write)
            if not put and new:
                full = Unavailable("too much waits to be stored: try again later", retry_after=REFUSED_FOR_S)
                self._events.stored(write.request_id, full)
            elif not put:
                metrics.records_given_up.labels("full").inc()
            if new:
                self._hurry()
            elif len(self._backlog) == 1:
                self._condition.notify_all()

    def renew(self) -> None:
        """Renews the lease, without blocking."""
        with self._condition:
            self._renew = True
            self._condition.notify_all()

    def trouble(self) -> str:
        """What is wrong with Redis now, as a clause; empty if nothing is."""
        with self._condition:
            if not self._problem:
                return ""
            if self._breaker.state is BreakerState.CLOSED:
                return f"{self._problem} ({self._breaker.failures} failures in a row)"
            return f"{self._problem}; it is tried again in {self._breaker.retry_after(time.monotonic()):.0f} s"

    def load(self, *request_ids: str) -> Loaded:
        """Everything stored, of all brokers, or of these requests only; what cannot be used is removed.

        Blocks. Raises `Unavailable`.
        """
        return self._look.load(*request_ids)

    def claim(self, request_id: str) -> Claim:
        """Makes a stored request this broker's, unless its owner lives. Blocks. Raises `Unavailable`.

        It may be a request that this broker has just released: what was written before is written first.
        """
        with self._condition:
            last = self._backlog.appended
            self._hurry()
            idle = self._breaker.state is not BreakerState.CLOSED
            if idle or not self._condition.wait_for(lambda: self._written >= last, TIMEOUT_S):
                raise Unavailable(f"writes wait for Redis at {self._where}: {self._problem or 'it is slow'}")
        claim = self._look.claim(request_id, self._limits.lease_s)
        if claim is Claim.OURS:
            with self._condition:
                self._backlog.keep(request_id)
        return claim

    def close(self, timeout: float) -> None:
        """Writes what is queued, for at most `timeout` seconds, and gives the lease back."""
        with self._condition:
            self._close_by = time.monotonic() + timeout
            self._closing.set()
            self._condition.notify_all()
        self._thread.join(timeout + 2 * TIMEOUT_S)
        self._redis.close()

    def _hurry(self) -> None:
        """Somebody waits for what is in the queue."""
        self._awaited = True
        self._condition.notify_all()

    @property
    def _written(self) -> int:
        """How many of the writes ever queued are done with."""
        return self._backlog.appended - len(self._backlog) - self._in_delivery

    # ---- the writer's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if not self._deliver(batch):
                    return
            self._look.release()
        except BaseException as error:
            self._events.crashed(error)

    def _next_batch(self) -> list[Write] | None:
        """Waits for writes or a renewal and takes some; None when the store closes."""
        with self._condition:
            while not self._backlog and not self._renew:
                if self._close_by is not None:
                    return None
                self._condition.wait()
            self._condition.wait_for(lambda: self._awaited or self._close_by is not None, GATHER_S)
            self._awaited = False
            metrics.store_backlog.set(len(self._backlog))
            batch = [write for group in together(self._backlog.take()) for write in group]
            self._in_delivery = len(batch)
            return batch

    def _deliver(self, batch: list[Write]) -> bool:
        """Writes `batch`, however often it has to be tried; False if the store had to close before."""
        while True:
            now = time.monotonic()
            with self._condition:
                allowed = self._breaker.allow(now)
                wait = self._breaker.retry_after(now)
                lease = self._renew
                self._show()
            if allowed:
                try:
                    outcomes = self._execute(batch, lease)
                except (redis.RedisError, OSError) as error:
                    batch, wait = self._failed(batch, error)
                else:
                    self._succeeded(batch, outcomes, lease)
                    return True
            if self._pause(wait):
                return False

    def _execute(self, batch: list[Write], lease: bool) -> list[Outcome]:
        """Writes `batch`, and the lease if it is due. Raises what went wrong."""
        groups = together(batch)
        for known in (True, False):
            with self._redis.pipeline(transaction=False) as pipe:
                for group in groups:
                    self._records.add(pipe, group)
                if lease:
                    self._records.add_lease(pipe, self._limits.lease_s)
                answers = pipe.execute(raise_on_error=False)
            if known and any(isinstance(answer, NoScriptError) for answer in answers):
                self._records.load_scripts()
            else:
                break
        outcomes = [outcome_of(answer) for answer in answers]
        return [outcome for group, outcome in zip(groups, outcomes[: len(groups)], strict=True) for _ in group]

    def _succeeded(self, batch: list[Write], outcomes: list[Outcome], lease: bool) -> None:
        with self._condition:
            was_open = self._breaker.state is not BreakerState.CLOSED
            self._breaker.succeeded()
            self._show()
            if lease:
                self._renew = False
            self._problem = ""
            self._in_delivery = 0
            for index, (write, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                if isinstance(write, SaveRequest):
                    self._events.stored(write.request_id, None if outcome is Outcome.DONE else _taken(write.request_id))
                if outcome is not Outcome.DONE and not isinstance(write, DeleteRequest):
                    self._lost(write, outcome, batch[index + 1 :])
            self._condition.notify_all()
        if was_open:
            self._events.changed("")

    def _lost(self, write: Write, outcome: Outcome, later: list[Write]) -> None:
        """Redis would not apply `write`; `later`: those after it in its batch."""
        request_id = write.request_id
        if not self._backlog.keeps(request_id) or self._backlog.ends(request_id, later):
            return
        if outcome is Outcome.BROKEN:
            self._backlog.give_up(request_id)
            metrics.records_given_up.labels("lost").inc()
            return
        self._backlog.forget(request_id)
        if not isinstance(write, SaveRequest):
            self._events.lost(request_id)

    def _failed(self, batch: list[Write], error: Exception) -> tuple[list[Write], float]:
        """What of `batch` is to be tried again, and after how many seconds."""
        self._redis.connection_pool.disconnect(inuse_connections=False)
        metrics.breaker_failures.labels(TARGET).inc()
        now = time.monotonic()
        with self._condition:
            self._breaker.failed(now)
            self._problem = f"Redis at {self._where} fails ({error}): {remedy(error)}"
            if self._breaker.state is BreakerState.CLOSED:
                return batch, min(BACKOFF_S * 2 ** (self._breaker.failures - 1), LONGEST_BACKOFF_S)
            self._show()
            new, batch = self._backlog.withdraw_new(batch)
            for request_id in new:
                self._refuse(request_id)
            wait = self._breaker.retry_after(now)
        if self._breaker.failures == self._limits.breaker_failures:
            self._events.changed(self._problem)
        return batch, wait

    def _refuse(self, request_id: str) -> None:
        wait = max(REFUSED_FOR_S, self._breaker.retry_after(time.monotonic()))
        text = f"the request cannot be stored ({self._problem}): try again in {wait:.1f} s"
        self._events.stored(request_id, Unavailable(text, retry_after=wait))

    def _show(self) -> None:
        metrics.breaker_state.labels(TARGET).set(_SHOWN[self._breaker.state])
        metrics.store_backlog.set(len(self._backlog))

    def _pause(self, seconds: float) -> bool:
        """Waits before another try; True if the store must close now."""
        if self._close_by is None:
            self._closing.wait(seconds)
        else:
            time.sleep(max(0.0, min(seconds, self._close_by - time.monotonic())))
        return self._close_by is not None and time.monotonic() >= self._close_by


def _taken(request_id: str) -> InvalidInput:
    text = f"request id {request_id} is taken: every request needs an id of its own"
    return InvalidInput(text, field="request_id")
