"""Results on their way to the broker, in order; what the socket does not take yet waits here."""

from __future__ import annotations

from collections import deque

from lighttts.transport.transport import NO_TARGET, Delivery
from lighttts.workers.compute import Parcel
from lighttts.workers.connector import Sender
from lighttts.workers.stage import Work


class Outbox:
    """Sends parcels by `sender` first in, first out. Its size is bounded by whoever fills it."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._parcels: deque[Parcel] = deque()
        self._moved = False

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, parcel: Parcel) -> None:
        """Queues `parcel`."""
        self._parcels.append(parcel)

    def flush(self) -> list[Parcel]:
        """Sends as many as the socket takes; returns those."""
        sent = []
        while self._parcels:
            parcel = self._parcels[0]
            if self._sender.send(NO_TARGET, parcel.frames) is not Delivery.SENT:
                break
            sent.append(self._parcels.popleft())
        self._moved = self._moved or bool(sent)
        return sent

    def stands_still(self) -> bool:
        """Whether something waits, and nothing has left since the last call."""
        still, self._moved = bool(self._parcels) and not self._moved, False
        return still

    def drop(self, work: Work) -> None:
        """Forgets what is left of `work`."""
        self._parcels = deque(parcel for parcel in self._parcels if parcel.work != work)

    def clear(self) -> None:
        """Forgets everything."""
        self._parcels.clear()
