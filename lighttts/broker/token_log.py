"""Every speech token of a request so far: what a worker that takes over goes on from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lighttts.broker.outbox import Frames
from lighttts.transport.schema import IntArray

TOKEN_BYTES = 4
MOST = 1 << 20
"""Tokens at which a log is full, and messages: half a day of speech, which only a defect makes of one text."""
_TOKENS = np.dtype("<i4")
FILL = -1
"""Stands where a message without tokens says that a block of text and speech is over."""


class Entry(NamedTuple):
    """One `Tokens` message as it came: `rows` tokens of one sentence."""

    frames: Frames
    sentence: int
    rows: int


class TokenLog:
    """`Tokens` messages in order. `sentence`: the one whose tokens are due; `tokens`: how many there are in all."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self.sentence = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return max(self.tokens, len(self._entries)) >= MOST

    def add(self, frames: Frames, rows: int, *, final: bool) -> None:
        """Enters a message of the sentence that is due; `final` ends the sentence."""
        self._entries.append(Entry(frames, self.sentence, rows))
        self.tokens += rows
        self.sentence += final

    def since(self, sentence: int) -> list[Frames]:
        """The messages of `sentence` and those after it."""
        return [entry.frames for entry in self._entries if entry.sentence >= sentence]

    def after(self, count: int) -> list[Frames]:
        """The messages after the first `count`."""
        return [entry.frames for entry in self._entries[count:]]

    def before(self, sentence: int) -> tuple[int, int]:
        """How many messages, and how many tokens, there are of the sentences before `sentence`."""
        earlier = [entry.rows for entry in self._entries if entry.sentence < sentence]
        return len(earlier), sum(earlier)

    def unfinished(self) -> IntArray:
        """The tokens (n,) of the sentence that is due, and `FILL`."""
        fill = np.array([FILL], _TOKENS).tobytes()
        pieces = [bytes(entry.frames[-1]) or fill for entry in self._entries if entry.sentence == self.sentence]
        return np.frombuffer(b"".join(pieces), _TOKENS)
