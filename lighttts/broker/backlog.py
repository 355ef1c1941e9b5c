"""Writes that wait for Redis: bounded, in order, and never such that a record gets a hole.

Of a request whose record is given up, only its deletion remains. Not safe to share between threads without a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from lighttts.broker.instructions import (
    AppendTokens,
    DeleteRequest,
    ReleaseRequest,
    SaveEncoded,
    SaveRequest,
    Write,
)

BATCH_WRITES = 2048
BATCH_BYTES = 32 << 20


class Backlog:
    """At most `most_writes` writes, with messages of at most `most_bytes`, beside one deletion a record."""

    def __init__(self, most_writes: int, most_bytes: int) -> None:
        self._most_writes = most_writes
        self._most_bytes = most_bytes
        self._queue: deque[Write] = deque()
        self._bytes = 0
        self.appended = 0
        """Writes ever added."""
        self._kept: set[str] = set()

    def __len__(self) -> int:
        return len(self._queue)

    def keeps(self, request_id: str) -> bool:
        """Whether that request has a record, or will have one when what waits is written."""
        return request_id in self._kept

    def keep(self, request_id: str) -> None:
        """That request has a record that further writes are for."""
        self._kept.add(request_id)

    def forget(self, request_id: str) -> None:
        """The record is no longer ours: what is still written to it is dropped."""
        self._kept.discard(request_id)

    def put(self, write: Write) -> bool:
        """Adds a write, unless it is to a record that is not kept. False: no room, so there is no record any more."""
        request_id, kept = write.request_id, self.keeps(write.request_id)
        if not kept and not isinstance(write, SaveRequest):
            return True
        if isinstance(write, DeleteRequest):
            self.give_up(request_id)
            return True
        if len(self._queue) >= self._most_writes or self._bytes + _size(write) > self._most_bytes:
            if kept:
                self.give_up(request_id)
            return False
        if isinstance(write, ReleaseRequest):
            self.forget(request_id)
        else:
            self.keep(request_id)
        self._append(write)
        return True

    def give_up(self, request_id: str) -> None:
        """Deletes the record; further writes to it are dropped."""
        self._kept.discard(request_id)
        self._append(DeleteRequest(request_id))

    def take(self) -> list[Write]:
        """Takes off the first writes, as many as go in one batch."""
        batch: list[Write] = []
        size = 0
        while self._queue and len(batch) < BATCH_WRITES and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += _size(batch[-1])
        self._bytes -= size
        return batch

    def withdraw_new(self, batch: list[Write]) -> tuple[list[str], list[Write]]:
        """Takes back the new requests in `batch`, which was taken and failed, and in what waits.

        Returns their ids and what of `batch` is still to be written. They are deleted: a record in `batch` may have
        been written although no answer came.
        """
        new = list(dict.fromkeys(w.request_id for w in (*batch, *self._queue) if isinstance(w, SaveRequest)))
        if not new:
            return [], batch
        withdrawn = set(new)
        self._kept -= withdrawn
        self._queue = deque(write for write in self._queue if write.request_id not in withdrawn)
        self._bytes = sum(map(_size, self._queue))
        rest = [write for write in batch if write.request_id not in withdrawn]
        return new, [*rest, *map(DeleteRequest, new)]

    def ends(self, request_id: str, before: Iterable[Write]) -> bool:
        """Whether the record's deletion is in `before` or waits: what is known of it is of the past."""
        return any(isinstance(w, DeleteRequest) and w.request_id == request_id for w in (*before, *self._queue))

    def _append(self, write: Write) -> None:
        self._queue.append(write)
        self.appended += 1
        self._bytes += _size(write)


def _size(write: Write) -> int:
    match write:
        case SaveRequest(_, _, frames) | SaveEncoded(_, frames) | AppendTokens(_, _, frames):
            return sum(map(len, frames))
    return 0
