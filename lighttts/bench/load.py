"""When requests begin: open loop, at random times whatever becomes of them, or closed loop, one after another. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """`rate` requests a second at random (Poisson), or `concurrency` at any time; for `seconds` after `warmup`."""

    seconds: float
    warmup: float
    rate: float = 0.0
    concurrency: int = 0

    @property
    def name(self) -> str:
        """The load in words."""
        return f"{self.rate:g} requests/s" if self.rate else f"{self.concurrency} at once"

    @property
    def level(self) -> float:
        """Its place on an axis of such loads."""
        return self.rate or self.concurrency

    @property
    def length(self) -> float:
        """Seconds until the last request begins."""
        return self.warmup + self.seconds

    def part(self, of: int, number: int) -> Load:
        """The share of process `number` of `of`."""
        ones = self.concurrency // of + (number < self.concurrency % of)
        return Load(self.seconds, self.warmup, self.rate / of, ones)


def poisson(load: Load, chance: random.Random) -> list[float]:
    """Seconds from the start at which the requests of an open loop begin."""
    times = []
    at = chance.expovariate(load.rate)
    while at < load.length:
        times.append(at)
        at += chance.expovariate(load.rate)
    return times
