"""Which hops are computed together.

A batch is padded to its longest past and its longest hop, so hops of very different sizes waste each other's time. Work
is counted in attended columns: each new frame attends to past and new frames, and its own layers cost as much as
attending to `FRAME_COST` more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FRAME_COST = 1000
"""Columns whose attention costs what a frame's convolutions and projections cost, for the dimensions in use."""

PADDING = 1.25
"""What a batch may cost of what its members cost alone."""


@dataclass(frozen=True)
class Size:
    """Frames (or tokens) a hop finds computed, and computes. Only hops of one `kind` may share a batch."""

    past: int
    new: int
    kind: object = None

    @property
    def cost(self) -> int:
        return self.new * (FRAME_COST + self.past + self.new)


def choose(sizes: Iterable[Size], limit: int) -> list[int]:
    """Indices of the hops to compute now, at most `limit`: the first, and those after it that it pays to add."""
    chosen: list[int] = []
    longest, alone = Size(0, 0), 0
    for index, size in enumerate(sizes):
        if chosen and size.kind != longest.kind:
            continue
        padded = Size(max(longest.past, size.past), max(longest.new, size.new), size.kind)
        if chosen and (len(chosen) + 1) * padded.cost > PADDING * (alone + size.cost):
            continue
        chosen.append(index)
        longest, alone = padded, alone + size.cost
        if len(chosen) == limit:
            break
    return chosen
