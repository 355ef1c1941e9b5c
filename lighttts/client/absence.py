"""Why no broker answers: none is there, or it does not let this client in."""

from __future__ import annotations

import math

from lighttts.errors import AccessDenied, LightTTSError, Unavailable

REFUSED_FOR = 5.0
"""Seconds that a refusal explains silence: as long as a client is being refused, it is again within this time."""


class Absence:
    """What is known about the broker at `endpoint` while there is no connection. Times are monotonic seconds."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._until = -math.inf

    def refused(self, now: float) -> None:
        """The broker ended the handshake of a client with a key, which says that it does not take the key, or dies."""
        self._until = max(self._until, now + REFUSED_FOR)

    def mismatched(self) -> None:
        """One side wants keys and the other has none; that connection is not tried again."""
        self._until = math.inf

    def error(self, now: float) -> LightTTSError:
        """What to tell those who have waited for a connection in vain."""
        if now > self._until:
            return Unavailable(f"no broker answers at {self._endpoint}: start one with `lighttts-cli up`")
        return AccessDenied(
            f"the broker at {self._endpoint} does not let this client in: use a folder with its broker.key and a "
            "client.secret that it allows (--keys DIR, or keys= in Python; `lighttts-cli keys --help` tells more)"
        )
