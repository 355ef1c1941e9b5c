"""How long a broker that owes an answer may be silent: it is greeted again, and then counts as lost. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Seconds of silence until the broker is greeted again, and until it counts as lost."""

    greet: float
    lost: float


ALONE = Patience(5.0, 15.0)
AMONG_OTHERS = Patience(2.5, 6.0)
"""With other brokers to go to; one that has requests speaks every 2 s, and one that hangs loses them after 3 s."""


class Silence:
    """Measures the silence of the broker of one connection. Times are monotonic seconds."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.greeted = False
        self._heard = -math.inf

    def heard(self, now: float) -> bool:
        """Anything has come, or silence before `now` does not count. True if `due` may be earlier than before."""
        self._heard = now
        greeted, self.greeted = self.greeted, False
        return greeted

    @property
    def due(self) -> float:
        """When the broker is to be greeted, or counts as lost, while it owes an answer."""
        return self._heard + (self.patience.lost if self.greeted else self.patience.greet)
