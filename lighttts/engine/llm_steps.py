"""What `lighttts.engine.llm` asks of the device side: to prefill slots and to decode one token for some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Drawn = Callable[[], list[int]]
"""Waits for a step and gives the ids it drew, stop ids included, in the order the slots were given."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Positions of one request to be prefilled at once."""

    slot: int
    start: int
    """Position of the first; those before are prefilled already."""
    ids: npt.NDArray[np.int64]
    """Sequence ids at the positions from `start` on."""
    state: list[int] | None
    """Row of the slot's state (see `lighttts.engine.llm_state`) if the request decodes from here on; its input may be a
    text token, as its id minus the number of text tokens."""


class Steps(Protocol):
    lag: int
    """How many steps are launched before the ids of the first are waited for."""
    longest: int
    """Most positions of a `prefill`, as `cost` counts them."""

    def cost(self, positions: int) -> int:
        """Positions a piece takes up in a prefill."""

    def prefill(self, pieces: Sequence[Piece]) -> None:
        """Keeps keys and values of each piece in its slot."""

    def decode(self, rows: Sequence[tuple[int, int]]) -> Drawn:
        """Advances the requests at these (slot, position of its input) by one token each."""

    def rest(self) -> None:
        """No slot is in use: what they hold may be given back."""
