"""Why no broker answers: none is there, or it does not let this client in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lighttts.client.brokers import LONGEST_S
from lighttts.errors import AccessDenied, LightTTSError, Unavailable
from lighttts.transport.endpoints import either


class Absence:
    """What is known about the brokers at `endpoints` while there is no connection. Times are monotonic seconds."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints
        self._refused: dict[str, float] = {}
        self.refused_for = LONGEST_S * len(endpoints) + 1.0
        """Seconds that a refusal explains silence: who is still being refused is so again within this time."""

    def refused(self, endpoint: str, now: float) -> None:
        """The handshake failed: one side wants keys that the other has not, or the broker does not take the key, or
        dies."""
        self._refused[endpoint] = now

    def error(self, now: float) -> LightTTSError:
        """What to tell those who have waited for a connection in vain."""
        refusing = [at for at in self._endpoints if now <= self._refused.get(at, -math.inf) + self.refused_for]
        if not refusing:
            return Unavailable(f"no broker answers at {either(self._endpoints)}: start one with `lighttts-cli up`")
        return AccessDenied(
            f"the broker at {either(refusing)} does not let this client in: use a folder with its broker.key and a "
            "client.secret that it allows (--keys DIR, or keys= in Python; `lighttts-cli keys --help` tells more)"
        )
