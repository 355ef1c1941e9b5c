"""Messages on their way to one peer, in order: what its credit or its socket does not take yet waits here."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence

from lighttts.transport.schema import Buffer
from lighttts.transport.wire import VERSIONS, Audio, Mel, Tokens, head

Frames = Sequence[Buffer]

DATA_HEADS = frozenset(head(cls, version) for cls in (Tokens, Mel, Audio) for version in VERSIONS)
UNLIMITED = float("inf")


class Channel(enum.Enum):
    """The two sockets that messages leave by."""

    CLIENTS = "clients"
    WORKERS = "workers"


class Budget:
    """Bytes that wait in memory for all requests together, and how many may."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def exceeded(self) -> bool:
        return self.used > self.limit

    def hold(self, size: int) -> None:
        """Counts `size` bytes in."""
        self.used += size

    def free(self, size: int) -> None:
        """Counts `size` bytes out."""
        self.used -= size


class Outbox:
    """First in, first out, towards `peer`. A frame of tokens, mel or audio costs one unit of `credit`, all else none.

    An outbox is itself the instruction to send what is ready in it: whoever carries it out sends what `ready` returns
    and calls `sent` after each message that was taken, until nothing is ready or the peer takes no more. So no message
    is lost or overtaken, whatever the socket does.
    """

    __slots__ = ("_budget", "channel", "credit", "peer", "size", "waiting")

    def __init__(self, channel: Channel, peer: bytes, budget: Budget, credit: float = UNLIMITED) -> None:
        self.channel = channel
        self.peer = peer
        self.credit = credit
        self.size = 0
        self.waiting: deque[tuple[int, int, Frames]] = deque()
        self._budget = budget

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, frames: Frames) -> None:
        """Queues a message."""
        size = len(frames[-1])
        self.size += size
        self._budget.used += size
        self.waiting.append((1 if frames[0] in DATA_HEADS else 0, size, frames))

    def ready(self) -> Frames | None:
        """The first message, if the credit is there for it."""
        if self.waiting:
            cost, _, frames = self.waiting[0]
            if cost <= self.credit:
                return frames
        return None

    def sent(self) -> None:
        """Takes the first message off and pays for it."""
        cost, size, _ = self.waiting.popleft()
        self.credit -= cost
        self.size -= size
        self._budget.used -= size

    def covered(self) -> bool:
        """Whether the credit is enough for all that waits."""
        return sum(cost for cost, _, _ in self.waiting) <= self.credit

    def clear(self) -> None:
        """Drops all that waits."""
        self.waiting.clear()
        self._budget.used -= self.size
        self.size = 0
