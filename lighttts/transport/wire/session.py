"""What a client and a broker say of themselves: the greeting, typed errors, and what the broker is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from lighttts.transport.schema import U32, U63, Flag, Float, Int, Many, OneOf, Record, Text
from lighttts.transport.wire.fields import STAGES, Line, Name, OptionalRequestId, Seconds
from lighttts.transport.wire.limits import MAX_WORKERS
from lighttts.transport.wire.message import Message, tagged


@tagged(0x10)
@dataclass(frozen=True, slots=True, eq=False)
class Hello(Message):
    """First message of a client; answered by `Welcome`."""

    client: Name
    software: Name


@tagged(0x20)
@dataclass(frozen=True, slots=True, eq=False)
class Welcome(Message):
    """Answers `Hello`. `max_text`: longest text in characters; `max_credit`: most frames in flight a request; `ready`:
    there is a worker of every stage."""

    broker: Name
    software: Name
    max_text: U32
    max_credit: U32
    ready: Flag = True


@tagged(0x23)
@dataclass(frozen=True, slots=True, eq=False)
class Error(Message):
    """A typed error (lighttts.errors). With a request id it ends that request; without, it answers the last message."""

    request_id: OptionalRequestId
    code: Name
    text: Line
    field: Name
    retryable: Flag
    retry_after_ms: U32


@tagged(0x16)
@dataclass(frozen=True, slots=True, eq=False)
class GetStatus(Message):
    """Answered by `Status` with the same `query_id`."""

    query_id: U63


class WorkerStatus(NamedTuple):
    """One worker's row in `Status`; `credit` is what it has granted and not been sent."""

    worker: str
    stage: str
    model: str
    state: str
    credit: int
    active: int
    age_s: float
    seen_s: float


_WORKER_STATUS = Record(
    (Text(128), OneOf(STAGES), Text(128), Text(32), *[Int(0, 2**32)] * 2, *[Float(0, 1e9)] * 2), WorkerStatus
)


@tagged(0x25)
@dataclass(frozen=True, slots=True, eq=False)
class Status(Message):
    """What the broker is doing: requests by state, and its workers."""

    query_id: U63
    broker: Name
    store: Name
    uptime_s: Seconds
    queued: U32
    active: U32
    completed: U63
    failed: U63
    workers: Annotated[tuple[WorkerStatus, ...], Many(_WORKER_STATUS, MAX_WORKERS)]
