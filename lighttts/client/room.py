"""How much more text a writer may hand over: writers wait here while a reader takes the speech that comes of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

from lighttts.client.events import FINAL, Event, Failed, Sent
from lighttts.errors import InvalidInput, LightTTSError
from lighttts.transport.wire import TEXT_WINDOW


class Mailbox(Protocol):
    """Where the reader's events go."""

    def put(self, event: Event) -> None: ...


def ended() -> LightTTSError:
    """Text after its end."""
    return InvalidInput("the text has ended: begin another one", field="text")


class Room:
    """For threads. Events of the request pass through it to `mailbox`; `put` may be called by any thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._changed = threading.Condition()
        self._free = TEXT_WINDOW
        self._over: LightTTSError | None = None

    def put(self, event: Event) -> None:
        """Takes in what happens."""
        with self._changed:
            if isinstance(event, Sent):
                self._free += event.size
            elif isinstance(event, FINAL):
                self._over = event.error if isinstance(event, Failed) else ended()
            self._changed.notify_all()
        if not isinstance(event, Sent):
            self._mailbox.put(event)

    def enter(self, size: int) -> None:
        """Waits until there is room and takes it for `size` bytes. Raises what has ended the request."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 or self._over)
            if self._over:
                raise self._over
            self._free -= size


class AsyncRoom:
    """The same for an event loop, which calls all of it; `put` is told by the loop's mailbox."""

    def __init__(self) -> None:
        self._free = TEXT_WINDOW
        self._over: LightTTSError | None = None
        self._changed = asyncio.Event()

    def put(self, event: Event) -> None:
        """Takes in what happens."""
        if isinstance(event, Sent):
            self._free += event.size
        elif isinstance(event, FINAL):
            self._over = event.error if isinstance(event, Failed) else ended()
        self._changed.set()

    async def enter(self, size: int) -> None:
        """As `Room.enter`."""
        while self._free <= 0 and not self._over:
            self._changed.clear()
            await self._changed.wait()
        if self._over:
            raise self._over
        self._free -= size
