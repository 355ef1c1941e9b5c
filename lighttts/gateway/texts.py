"""Text that comes piece by piece, as a language model writes it, taken in sentences as soon as they are whole."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from lighttts.gateway.failures import Refused

PENDING_MAX = 65_536
"""Most characters that wait to be spoken."""
LONGEST = 400
"""Characters without the end of a sentence, after which they are spoken all the same."""

_END = re.compile(r"""[。！？；…]["'”’』」)]*|[.!?;…]["'”’)]*(?=\s)|\n""")


class Said(NamedTuple):
    """A piece of a text; with `flush`, what has come is to be spoken to its end; with `end`, nothing follows."""

    text: str
    flush: bool = False
    end: bool = False


class Texts:
    """Takes pieces, gives sentences: for one who adds and one who takes. `ended`: nothing follows."""

    def __init__(self) -> None:
        self._pending = ""
        self._flushed = 0
        self.ended = False
        self._changed = asyncio.Event()

    def add(self, said: Said) -> None:
        """Adds what has come. Raises `Refused` when it comes much faster than it is spoken, or after the end."""
        if self.ended:
            raise Refused(400, "invalid_input", "no text may follow the end", field="text")
        if len(self._pending) + len(said.text) > PENDING_MAX:
            raise Refused(413, "too_large", f"more than {PENDING_MAX} characters wait to be spoken: send them later")
        self._pending += said.text
        if said.flush:
            self._flushed = len(self._pending)
        self.ended = said.end
        self._changed.set()

    async def take(self) -> str:
        """The whole sentences there are, waiting for one; at the end what is left, then ""."""
        while True:
            ready = self._cut()
            if _speakable(ready) or (self.ended and not self._pending):
                return ready if _speakable(ready) else ""
            if not self.ended:
                self._changed.clear()
                await self._changed.wait()

    def _cut(self) -> str:
        """Takes what can be spoken now from what is pending, "" if nothing can."""
        ends = [self._flushed, *(end.end() for end in _END.finditer(self._pending))]
        at = len(self._pending) if self.ended else max(ends)
        if not at and len(self._pending) > LONGEST:
            at = self._pending.rfind(" ") + 1 or len(self._pending)
        ready, self._pending = self._pending[:at], self._pending[at:]
        self._flushed = max(0, self._flushed - at)
        return ready


def _speakable(text: str) -> bool:
    """Whether there is more to it than marks and spaces, which no model makes a sound of."""
    return any(char.isalnum() for char in text)
