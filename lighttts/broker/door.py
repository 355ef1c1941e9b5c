"""The broker's door: tells of those who were not let in, and of doors that stand open."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from lighttts import metrics
from lighttts.logs import get_logger
from lighttts.transport.endpoints import is_loopback
from lighttts.transport.entrance import Entrance
from lighttts.transport.guests import Guest
from lighttts.transport.security import Refusal

LOG_INTERVAL_S = 1.0
"""Whoever is refused tries again at once: the log gets one line in this time, the metric counts all."""


class Door:
    """Counts and logs refusals; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._log = get_logger()
        self._quiet_until = -math.inf
        self._unlogged = 0

    def refused(self, refusal: Refusal) -> None:
        """Takes note of a refusal."""
        if refusal.address:
            metrics.connections_refused.labels(refusal.domain).inc()
        now = self._clock()
        if now < self._quiet_until:
            self._unlogged += 1
            return
        self._quiet_until = now + LOG_INTERVAL_S
        more, self._unlogged = self._unlogged, 0
        if refusal.address:
            self._log.warning("connection refused", socket=refusal.domain, more=more, **_who(refusal))
        else:
            self._log.error("a key file cannot be used", socket=refusal.domain, more=more, why=refusal.why)

    def expelled(self, domain: str, guests: Collection[Guest]) -> None:
        """Takes note of connections that were ended because their keys were removed."""
        for user in sorted({guest.user for guest in guests}):
            self._log.warning("connection ended: its key is not allowed any more", socket=domain, user=user)

    def crowded(self, entrance: Entrance) -> None:
        """Tells of connections that were hung up because there were too many, or because they said nothing."""
        domain, turned_away = entrance.domain.value, entrance.tick()
        metrics.connections.labels(domain).set(len(entrance))
        if turned_away:
            metrics.connections_refused.labels(domain).inc(turned_away)
            self._log.warning("connections turned away", socket=domain, count=turned_away, limit=entrance.most)

    def warn_if_few(self, entrances: Iterable[Entrance], wanted: int) -> None:
        """Says once that descriptors are too scarce for the connections that may be made."""
        most = min((entrance.most for entrance in entrances), default=wanted)
        if most < wanted:
            text = "few files may be open: raise LimitNOFILE, or lower security.connections"
            self._log.warning(text, connections=wanted, possible=most)

    def warn_if_open(self, endpoints: Iterable[str]) -> None:
        """Says once which endpoints, bound without keys, anybody in the network can use."""
        reached = [endpoint for endpoint in endpoints if endpoint.startswith("tcp://") and not is_loopback(endpoint)]
        if reached:
            text = "anybody who reaches these addresses can use them and read what passes: set security.keys"
            self._log.warning(text, endpoints=reached)


def _who(refusal: Refusal) -> dict[str, str]:
    return {"address": refusal.address, "key": refusal.key, "why": refusal.why}
