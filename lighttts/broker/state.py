"""What must outlive a step of the broker: requests, their encoded form and their token logs.

`memory://` keeps them in this process. `redis://`, `rediss://`, `unix://` and `redis+sentinel://` keep them in Redis,
see `redis_store`.

A record belongs to one broker, its owner, which shows by renewing its lease that it lives. A broker may claim the
records of an owner whose lease has run out; what the former owner still writes to them changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveEncoded, SaveRequest, SaveState, Write
from lighttts.broker.outbox import Frames
from lighttts.errors import LightTTSError


class StoreEvents(NamedTuple):
    """What a durable store tells, from a thread of its own.

    `stored`: a new request's record is safe (None) or could not be written. `changed`: the store does not take writes,
    and why; an empty text when it does again. `lost`: another broker has claimed this request. `crashed`: a defect has
    ended the store's thread.
    """

    stored: Callable[[str, LightTTSError | None], None]
    changed: Callable[[str], None]
    lost: Callable[[str], None]
    crashed: Callable[[BaseException], None]


@dataclass(slots=True)
class Saved:
    """One stored request; `tokens` by sequence number 0, 1, 2, ..., `received` in Unix time."""

    client: bytes = b""
    synth: Frames = ()
    state: str = ""
    encoded: Frames = ()
    tokens: dict[int, Frames] = field(default_factory=dict)
    received: float = 0.0
    owner: str = ""


class Loaded(NamedTuple):
    """All that is stored, by request id; and the records that could not be used and were removed, with the reason."""

    requests: dict[str, Saved]
    damaged: dict[str, str]


class StateStore(Protocol):
    """Takes writes without blocking. `durable`: it tells by `StoreEvents.stored` when a request's record is safe.

    `load`, `claim` and `orphans` wait for the store, so they are not for the broker's loop once it serves; they may be
    called from any thread and raise `Unavailable`.
    """

    name: str
    durable: bool

    def write(self, write: Write) -> None: ...

    def trouble(self) -> str:
        """What is wrong with the store now, as a clause; empty if nothing is."""

    def renew(self) -> None:
        """Renews the lease of this broker, without blocking: to be called several times a lease."""

    def load(self, *request_ids: str) -> Loaded:
        """Everything stored, of all brokers, or of these requests only.

        Claim a request before going on with it, and load it again after that.
        """

    def claim(self, request_id: str) -> bool:
        """Makes a stored request this broker's, unless its owner lives or nothing is stored of it."""

    def orphans(self) -> list[str]:
        """Ids of stored requests whose owner's lease has run out."""

    def close(self, timeout: float) -> None:
        """Writes what is left, for at most `timeout` seconds."""


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
                saved.received = time.time()
            case SaveState(_, state):
                saved.state = state
            case SaveEncoded(_, encoded):
                saved.encoded = encoded
            case AppendTokens(_, seq, tokens):
                saved.tokens[seq] = tokens

    def trouble(self) -> str:
        """None."""
        return ""

    def renew(self) -> None:
        """Nobody else looks."""

    def load(self, *request_ids: str) -> Loaded:
        """What this process has stored."""
        wanted = request_ids or tuple(self.requests)
        return Loaded(
            {request_id: self.requests[request_id] for request_id in wanted if request_id in self.requests}, {}
        )

    def claim(self, request_id: str) -> bool:
        """Every stored request is this process' own."""
        return request_id in self.requests

    def orphans(self) -> list[str]:
        """There are none."""
        return []

    def close(self, timeout: float) -> None:
        """Nothing is left to write."""
