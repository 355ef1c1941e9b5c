"""When a stream of speech tokens is cut into hops, and where.

As upstream streams both models (`cli/model.py`, `CosyVoice2Model.tts`): hops of one, two, then four chunks, the first
lengthened so that prompt and hop together fill whole chunks. A hop waits for the look-ahead tokens after it. What is
left when the tokens end, less than a hop and its look-ahead, is the final hop.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 4
"""Chunks of the longest hop."""


@dataclass(frozen=True)
class Hop:
    """Tokens `start` to `end` of a request (its prompt not counted), computed from the tokens up to `given`."""

    index: int
    start: int
    end: int
    given: int
    final: bool


@dataclass(frozen=True)
class HopSchedule:
    """Where a request stands: `done` tokens in `hops` hops. `prompt`: tokens of its prompt."""

    prompt: int
    chunk: int = 25
    look_ahead: int = 3
    done: int = 0
    hops: int = 0

    def next(self, available: int, ended: bool) -> Hop | None:
        """The hop that `available` tokens allow, None if more are needed. `ended`: no token will follow them."""
        length = self.chunk * min(2**self.hops, LONGEST)
        if self.hops == 0:
            length += -self.prompt % self.chunk
        end = self.done + length
        if available >= end + self.look_ahead:
            return Hop(self.hops, self.done, end, end + self.look_ahead, final=False)
        if ended:
            return Hop(self.hops, self.done, available, available, final=True)
        return None

    def after(self, hop: Hop) -> HopSchedule:
        return HopSchedule(self.prompt, self.chunk, self.look_ahead, hop.end, self.hops + 1)
