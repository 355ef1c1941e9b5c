"""What must outlive a step of the broker: requests, their encoded form and their token logs.

`memory://` keeps them in this process. `redis://`, `rediss://`, `unix://` and `redis+sentinel://` keep them in Redis,
see `redis_store`.

A record belongs to one broker, its owner, which shows by renewing its lease that it lives. A broker may claim a record
that was released, or whose owner's lease has run out; what the former owner still writes to it changes nothing.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lighttts.broker.instructions import (
    PARKED_S,
    AppendTokens,
    DeleteRequest,
    ReleaseRequest,
    SaveEncoded,
    SaveRequest,
    SaveState,
    Write,
)
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
    """One stored request; `synth`: the message that asked for it, a `Synth` or `Convert`; `tokens` by sequence number
    0, 1, 2, ...; `received` in Unix time."""

    client: bytes = b""
    synth: Frames = ()
    state: str = ""
    encoded: Frames = ()
    tokens: dict[int, Frames] = field(default_factory=dict)
    received: float = 0.0
    owner: str = ""

    @property
    def size(self) -> int:
        """Bytes of its messages."""
        return sum(len(frame) for frames in (self.synth, self.encoded, *self.tokens.values()) for frame in frames)


class Claim(enum.Enum):
    """What came of asking for a record: it is this broker's now, there is none, or its owner lives."""

    OURS = enum.auto()
    ABSENT = enum.auto()
    FOREIGN = enum.auto()


Found = Saved | Claim
"""A record that is this broker's now; or `ABSENT`, or `FOREIGN`, when it cannot be had now."""


class Loaded(NamedTuple):
    """All that is stored, by request id; and the records that could not be used and were removed, with the reason."""

    requests: dict[str, Saved]
    damaged: dict[str, str]


class StateStore(Protocol):
    """Takes writes without blocking. `durable`: it tells by `StoreEvents.stored` when a request's record is safe.

    `load` and `claim` wait for the store, so they are not for the broker's loop once it serves; they may be called from
    any thread and raise `Unavailable`.
    """

    name: str
    durable: bool

    def write(self, write: Write) -> None: ...

    def trouble(self) -> str:
        """What is wrong with the store now, as a clause; empty if nothing is."""

    def renew(self) -> None:
        """Renews the lease of this broker, without blocking, and drops what was released long ago: to be called several
        times a lease."""

    def load(self, *request_ids: str) -> Loaded:
        """Everything stored, of all brokers, or of these requests only.

        Claim a request before going on with it, and load it again after that.
        """

    def claim(self, request_id: str) -> Claim:
        """Makes a stored request this broker's, unless its owner lives; after all that was written before."""

    def close(self, timeout: float) -> None:
        """Writes what is left, for at most `timeout` seconds."""


PARKED_BYTES = 256 << 20
PARKED_MOST = 1000
"""Most released requests that memory keeps; those released first give way."""


class MemoryStore:
    """Keeps everything in `requests`, by request id, until it is deleted, or not claimed soon enough after its release.

    `clock` gives monotonic seconds.
    """

    name = "memory"
    durable = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests: dict[str, Saved] = {}
        self._clock = clock
        self._parked: dict[str, tuple[float, int]] = {}

    def write(self, write: Write) -> None:
        """Applies one write."""
        if isinstance(write, DeleteRequest):
            self._drop(write.request_id)
            return
        if isinstance(write, ReleaseRequest):
            self._park(write.request_id)
            return
        if isinstance(write, SaveRequest):
            self._drop(write.request_id)
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
        """Drops what was released long ago; nobody else looks for a lease."""
        now = self._clock()
        for request_id in [request_id for request_id, (until, _) in self._parked.items() if now >= until]:
            self._drop(request_id)

    def load(self, *request_ids: str) -> Loaded:
        """What this process has stored."""
        wanted = request_ids or tuple(self.requests)
        return Loaded(
            {request_id: self.requests[request_id] for request_id in wanted if request_id in self.requests}, {}
        )

    def claim(self, request_id: str) -> Claim:
        """Every stored request is this process' own."""
        self._parked.pop(request_id, None)
        return Claim.OURS if request_id in self.requests else Claim.ABSENT

    def close(self, timeout: float) -> None:
        """Nothing is left to write."""

    def _park(self, request_id: str) -> None:
        self._parked[request_id] = (self._clock() + PARKED_S, self.requests[request_id].size)
        while len(self._parked) > PARKED_MOST or sum(size for _, size in self._parked.values()) > PARKED_BYTES:
            self._drop(next(iter(self._parked)))

    def _drop(self, request_id: str) -> None:
        self._parked.pop(request_id, None)
        self.requests.pop(request_id, None)
