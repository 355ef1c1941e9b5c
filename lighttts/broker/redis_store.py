"""Request state in Redis, written by a thread of its own so that a slow or dead Redis never holds up the broker.

Writes wait in a bounded queue and go out in batches, in order. Every write can be repeated without harm, so a batch
that fails is tried again until it succeeds; meanwhile new requests are told that their record is not safe. When the
queue is full, the request whose write finds no room is given up here: a record with a hole in it must never be read
back, so its keys are deleted. The request itself goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import msgpack
import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveEncoded, SaveRequest, SaveState, Write
from lighttts.broker.keys import keys_of
from lighttts.broker.outbox import Frames
from lighttts.broker.state import StoreEvents
from lighttts.errors import ConfigError, Unavailable

TIMEOUT_S = 2.0
"""Seconds to connect, and for each answer."""
RETRY_S = 0.5
BATCH_WRITES = 256
BATCH_BYTES = 32 << 20
QUEUE_WRITES = 100_000
QUEUE_BYTES = 256 << 20


class RedisStore:
    """Writes to the Redis at `url`; keys live `ttl` seconds after the last write to them.

    Raises `Unavailable` when it cannot be reached, `ConfigError` when the URL is wrong or it does not let us in.
    """

    name = "redis"
    durable = True

    def __init__(
        self,
        url: str,
        ttl: float,
        events: StoreEvents,
        *,
        most_writes: int = QUEUE_WRITES,
        most_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._ttl_ms = max(1, round(1000 * ttl))
        self._events = events
        self._most_writes = most_writes
        self._most_bytes = most_bytes
        self._redis, self._where = _connect(url)
        self._condition = threading.Condition()
        self._queue: deque[Write] = deque()
        self._bytes = 0
        self._given_up: set[str] = set()
        self._problem = ""
        self._close_by: float | None = None
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()

    def write(self, write: Write) -> None:
        """Queues a write; never blocks on Redis."""
        with self._condition:
            request_id, size = write.request_id, _size(write)
            if isinstance(write, DeleteRequest):
                self._given_up.discard(request_id)
            elif request_id in self._given_up:
                return
            elif len(self._queue) >= self._most_writes or self._bytes + size > self._most_bytes:
                self._given_up.add(request_id)
                if isinstance(write, SaveRequest):
                    self._events.stored(request_id, Unavailable("too much waits to be stored: try again later"))
                write, size = DeleteRequest(request_id), 0
            self._queue.append(write)
            self._bytes += size
            self._condition.notify()

    def close(self, timeout: float) -> None:
        """Writes what is queued, for at most `timeout` seconds."""
        with self._condition:
            self._close_by = time.monotonic() + timeout
            self._condition.notify()
        self._thread.join(timeout + 2 * TIMEOUT_S)
        self._redis.close()

    # ---- the writer's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._deliver(batch)
        except BaseException as error:
            self._events.crashed(error)

    def _next_batch(self) -> list[Write]:
        """Waits for writes and takes some; none when the store closes."""
        with self._condition:
            while not self._queue:
                if self._close_by is not None:
                    return []
                self._condition.wait()
            batch: list[Write] = []
            size = 0
            while self._queue and len(batch) < BATCH_WRITES and size < BATCH_BYTES:
                batch.append(self._queue.popleft())
                size += _size(batch[-1])
            self._bytes -= size
            return batch

    def _deliver(self, batch: list[Write]) -> None:
        """Writes `batch`, however often it has to be tried."""
        while True:
            try:
                if self._problem:
                    self._redis.ping()
                self._execute(batch)
            except (redis.RedisError, OSError) as error:
                batch = self._withdraw_new(batch, f"Redis at {self._where}: {error}")
                if self._wait_to_retry():
                    return
            else:
                self._recovered(batch)
                return

    def _execute(self, batch: list[Write]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for write in batch:
                self._add(pipe, write)
            pipe.execute()

    def _add(self, pipe: Pipeline, write: Write) -> None:
        keys = keys_of(write.request_id)
        match write:
            case DeleteRequest():
                pipe.delete(*keys)
            case SaveRequest(_, client, synth):
                pipe.hset(keys.request, "client", client)
                pipe.hset(keys.request, "synth", _packed(synth))
                pipe.hset(keys.request, "received", str(time.time()))
                pipe.hset(keys.request, "state", "received")
                pipe.pexpire(keys.request, self._ttl_ms)
            case SaveState(_, state):
                pipe.hset(keys.request, "state", state)
                pipe.pexpire(keys.request, self._ttl_ms)
            case SaveEncoded(_, encoded):
                pipe.set(keys.encoded, _packed(encoded), px=self._ttl_ms)
            case AppendTokens(_, seq, tokens):
                pipe.hset(keys.tokens, str(seq), _packed(tokens))
                pipe.pexpire(keys.tokens, self._ttl_ms)

    def _withdraw_new(self, batch: list[Write], problem: str) -> list[Write]:
        """Redis fails: nothing new is safe. Returns `batch` without the records of new requests."""
        with self._condition:
            new = [write for write in (*batch, *self._queue) if isinstance(write, SaveRequest)]
            if new:
                self._queue = deque(write for write in self._queue if not isinstance(write, SaveRequest))
                self._bytes = sum(map(_size, self._queue))
        if not self._problem:
            self._problem = problem
            self._events.changed(problem)
        for write in new:
            self._events.stored(
                write.request_id, Unavailable(f"the request cannot be stored ({problem}): try again later")
            )
        return [write for write in batch if not isinstance(write, SaveRequest)]

    def _wait_to_retry(self) -> bool:
        """Waits a little; True if the store must close now."""
        with self._condition:
            if self._close_by is None:
                self._condition.wait(RETRY_S)
            else:
                time.sleep(max(0.0, min(RETRY_S, self._close_by - time.monotonic())))
            return self._close_by is not None and time.monotonic() >= self._close_by

    def _recovered(self, batch: list[Write]) -> None:
        if self._problem:
            self._problem = ""
            self._events.changed("")
        for write in batch:
            if isinstance(write, SaveRequest):
                self._events.stored(write.request_id, None)


def _connect(url: str) -> tuple[redis.Redis, str]:
    """A client that has reached the Redis at `url`, and where that is, without its password."""
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="lighttts-broker",
        )
    except ValueError as error:
        raise ConfigError(f"broker.state is not a Redis address: {error}", field="broker.state") from error
    options = client.connection_pool.connection_kwargs
    where = str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
    try:
        client.ping()
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise ConfigError(f"Redis at {where} does not let the broker in ({error}): mend broker.state") from error
    except (redis.RedisError, OSError) as error:
        raise Unavailable(
            f"Redis at {where} cannot be reached ({error}): start it, or set broker.state to memory://"
        ) from error
    return client, where


def _packed(frames: Frames) -> bytes:
    packed: bytes = msgpack.packb([bytes(frame) for frame in frames])
    return packed


def _size(write: Write) -> int:
    match write:
        case SaveRequest(_, _, frames) | SaveEncoded(_, frames) | AppendTokens(_, _, frames):
            return sum(map(len, frames))
    return 0
