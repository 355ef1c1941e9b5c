"""Text that comes piece by piece, as a language model writes it, on its way to the broker."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from lighttts.gateway.failures import Refused

PENDING_MAX = 65_536
"""Most characters that wait to be spoken."""


class Said(NamedTuple):
    """A piece of a text; with `flush`, what has come is to be spoken to its end; with `end`, nothing follows."""

    text: str
    flush: bool = False
    end: bool = False


class Texts:
    """Takes pieces and gives them on: for one who adds and one who takes. `ended`: nothing follows."""

    def __init__(self) -> None:
        self._pending: list[Said] = []
        self._size = 0
        self.ended = False
        self._changed = asyncio.Event()

    def add(self, said: Said) -> None:
        """Adds what has come. Raises `Refused` when it comes much faster than it is spoken, or after the end."""
        if self.ended:
            raise Refused(400, "invalid_input", "no text may follow the end", field="text")
        self._size += len(said.text)
        if self._size > PENDING_MAX:
            raise Refused(413, "too_large", f"more than {PENDING_MAX} characters wait to be spoken: send them later")
        self._pending.append(said)
        self.ended = said.end
        self._changed.set()

    async def begun(self) -> bool:
        """Waits for something that can be spoken; False if the text ends without."""
        while not any(char.isalnum() for said in self._pending for char in said.text):
            if self.ended:
                return False
            await self._change()
        return True

    async def take(self) -> Said:
        """All that waits up to the next flush, waiting for something."""
        while not self._pending:
            if self.ended:
                return Said("", end=True)
            await self._change()
        text = ""
        while self._pending:
            said = self._pending.pop(0)
            text += said.text
            if said.flush or said.end:
                break
        self._size -= len(text)
        return Said(text, said.flush, said.end)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
