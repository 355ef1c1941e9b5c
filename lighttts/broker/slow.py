"""Clients that take nothing: a request whose frames wait too long for credit, or for the socket, is ended."""

from __future__ import annotations

from lighttts.broker.endings import Endings
from lighttts.broker.outbox import Frames
from lighttts.broker.requests import RequestTable
from lighttts.errors import SlowClient


class SlowClients:
    """Ends a live request when its client has taken none of what waits for it for `limit_s` seconds."""

    def __init__(self, requests: RequestTable, endings: Endings, limit_s: float) -> None:
        self._requests = requests
        self._endings = endings
        self._limit_s = limit_s
        self._stalled: dict[str, tuple[Frames, float]] = {}
        """What is first in line for a request's client, and since when at the latest."""

    def tick(self, now: float) -> None:
        """Looks at whether anything was taken since the last call."""
        before, self._stalled = self._stalled, {}
        for request in tuple(self._requests.live.values()):
            if not request.outbox:
                continue
            first = request.outbox.waiting[0][-1]
            known, since = before.get(request.id, (first, now))
            self._stalled[request.id] = first, since if known is first else now
            if known is first and now - since >= self._limit_s:
                error = SlowClient(
                    f"the client has taken nothing for {self._limit_s:g} s while frames waited for it: grant credit as"
                    " they are used"
                )
                self._endings.fail(request, error, now)
