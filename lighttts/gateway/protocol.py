"""HTTP/1.1 for clients that may be slow on purpose."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

OWED_S = 10.0
"""Seconds that a client has for the head of a request, and for the rest of a body once it has its answer."""
STALL_S = 60.0
"""Seconds that a client may take none of what is sent."""
_ANSWERED = (h11.DONE, h11.MUST_CLOSE)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which closes a connection whose client owes something for too long. How long a body may take
    is decided where it is read."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expects a request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Takes what has come; the time for a head does not begin anew with each byte of it."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """Expects the rest of the body, if there is one."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect()

    def pause_writing(self) -> None:
        """Expects that there will be room for more."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """There is."""
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._forgive()
        if self._stalled:
            self._stalled.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        theirs = self.conn.their_state
        owed = theirs is h11.IDLE or (theirs is h11.SEND_BODY and self.conn.our_state in _ANSWERED)
        if not owed:
            self._forgive()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(OWED_S, self.transport.abort)

    def _forgive(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
