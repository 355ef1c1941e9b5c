"""What must outlive a step of the broker: requests, their encoded form and their token logs.

`memory://` keeps them in this process. `redis://`, `rediss://` and `unix://` keep them in Redis, see `redis_store`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveEncoded, SaveRequest, SaveState, Write
from lighttts.broker.outbox import Frames
from lighttts.errors import LightTTSError


class StoreEvents(NamedTuple):
    """What a durable store tells, from a thread of its own.

    `stored`: a new request's record is safe (None) or could not be written. `changed`: the store does not take writes,
    and why; an empty text when it does again. `crashed`: a defect has ended the store's thread.
    """

    stored: Callable[[str, LightTTSError | None], None]
    changed: Callable[[str], None]
    crashed: Callable[[BaseException], None]


class StateStore(Protocol):
    """Takes writes without blocking. `durable`: it tells by `StoreEvents.stored` when a request's record is safe."""

    name: str
    durable: bool

    def write(self, write: Write) -> None: ...

    def close(self, timeout: float) -> None:
        """Writes what is left, for at most `timeout` seconds."""


@dataclass(slots=True)
class Saved:
    """One stored request; `tokens` by sequence number."""

    client: bytes = b""
    synth: Frames = ()
    state: str = ""
    encoded: Frames = ()
    tokens: dict[int, Frames] = field(default_factory=dict)


class MemoryStore:
    """Keeps everything in `requests`, by request id, until it is deleted."""

    name = "memory"
    durable = False

    def __init__(self) -> None:
        self.requests: dict[str, Saved] = {}

    def write(self, write: Write) -> None:
        """Applies one write."""
        if isinstance(write, DeleteRequest):
            self.requests.pop(write.request_id, None)
            return
        saved = self.requests.setdefault(write.request_id, Saved())
        match write:
            case SaveRequest(_, client, synth):
                saved.client, saved.synth, saved.state = client, synth, "received"
            case SaveState(_, state):
                saved.state = state
            case SaveEncoded(_, encoded):
                saved.encoded = encoded
            case AppendTokens(_, seq, tokens):
                saved.tokens[seq] = tokens

    def close(self, timeout: float) -> None:
        """Nothing is left to write."""
