"""What the core tells its surroundings to do, and `Step`, which collects it while one event is handled.

An `Outbox` among the instructions says: send what is ready in it, and tell the core if its peer is gone, or full.
"""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple, get_args

from lighttts.broker.outbox import Channel, Frames, Outbox
from lighttts.broker.voice_questions import AskVoices


class Reply(NamedTuple):
    """Send one message that belongs to no request; tell the core if the peer is gone, or full."""

    channel: Channel
    peer: bytes
    frames: Frames


class SaveRequest(NamedTuple):
    """Store a new request: who its client is (`Board.who`) and the message that asks for it, `Synth` or `Convert`.
    Answered when it is safe, or is not."""

    request_id: str
    client: bytes
    synth: Frames


class SaveState(NamedTuple):
    """Store the state a request has come to."""

    request_id: str
    state: str


class SaveEncoded(NamedTuple):
    """Store a request's `Encoded` message."""

    request_id: str
    encoded: Frames


class AppendTokens(NamedTuple):
    """Store the `Tokens` message with sequence number `seq` in a request's token log."""

    request_id: str
    seq: int
    tokens: Frames


class DeleteRequest(NamedTuple):
    """Remove everything stored of a request."""

    request_id: str


class ReleaseRequest(NamedTuple):
    """Keep a request for `PARKED_S` seconds for whichever broker its client goes on with it at."""

    request_id: str


class Fetch(NamedTuple):
    """Make a stored request this broker's own and read it; answered by `Core.fetched`."""

    request_id: str


Write = SaveRequest | SaveState | SaveEncoded | AppendTokens | DeleteRequest | ReleaseRequest
WRITES = get_args(Write)

PARKED_S = 15.0
"""Seconds that a client whose connection broke has to come back: longer than it tries to connect."""


class Metric(enum.IntEnum):
    """Metrics the core observes; the label, if any, is the stage, method, code or reason."""

    REQUESTS = enum.auto()
    FAILURES = enum.auto()
    PARKED = enum.auto()
    RESUMED = enum.auto()
    DURATION = enum.auto()
    FIRST_AUDIO = enum.auto()
    REAL_TIME_FACTOR = enum.auto()
    CHUNK_INTERVAL = enum.auto()
    UNDERRUNS = enum.auto()
    STAGE = enum.auto()
    WORKER_FAILURES = enum.auto()
    FRAMES = enum.auto()
    REFUSED = enum.auto()


class Observe(NamedTuple):
    """One observation of a metric: seconds, a ratio, or how many to count."""

    metric: Metric
    value: float
    label: str = ""


Level = Literal["debug", "info", "warning", "error"]


class Log(NamedTuple):
    """One log line."""

    level: Level
    event: str
    fields: dict[str, object]


Instruction = Outbox | Reply | Write | Fetch | AskVoices | Observe | Log


class Step:
    """The instructions of the event that is being handled, in order."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []

    def add(self, instruction: Instruction) -> None:
        """Adds one instruction."""
        self.instructions.append(instruction)

    def observe(self, metric: Metric, value: float = 1.0, label: str = "") -> None:
        """Adds an observation."""
        self.instructions.append(Observe(metric, value, label))

    def log(self, level: Level, event: str, **fields: object) -> None:
        """Adds a log line."""
        self.instructions.append(Log(level, event, fields))

    def finish(self) -> list[Instruction]:
        """Hands over what was collected and begins anew."""
        done, self.instructions = self.instructions, []
        return done
