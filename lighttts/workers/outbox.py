"""Results on their way to the broker, in order; what the socket does not take yet waits here."""

from __future__ import annotations

from collections import deque

from lighttts.transport.transport import NO_TARGET, Delivery, Transport
from lighttts.workers.compute import Parcel
from lighttts.workers.stage import Work


class Outbox:
    """Sends parcels over `transport` first in, first out. Its size is bounded by whoever fills it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parcels: deque[Parcel] = deque()

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, parcel: Parcel) -> None:
        """Queues `parcel`."""
        self._parcels.append(parcel)

    def flush(self) -> list[Parcel]:
        """Sends as many as the transport takes; returns those."""
        sent = []
        while self._parcels:
            parcel = self._parcels[0]
            if self._transport.send(NO_TARGET, parcel.frames) is not Delivery.SENT:
                break
            sent.append(self._parcels.popleft())
        return sent

    def drop(self, work: Work) -> None:
        """Forgets what is left of `work`."""
        self._parcels = deque(parcel for parcel in self._parcels if parcel.work != work)

    def clear(self) -> None:
        """Forgets everything."""
        self._parcels.clear()
