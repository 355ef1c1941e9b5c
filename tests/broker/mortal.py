"""A core that may die at any moment, on a store that is behind with its writes and outlives it."""

from __future__ import annotations

from collections import deque

from lighttts.broker.core import Core
from lighttts.broker.instructions import AppendTokens, SaveRequest, Write
from lighttts.broker.state import Claim, MemoryStore
from tests.broker.harness import Harness

LEASE_S = 3.0


class LateStore(MemoryStore):
    """Writes wait in `late` until the store comes to them, or are lost with the broker. `orphans`: a dead broker's."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(lambda: harness.now)
        self._harness = harness
        self.late: deque[Write] = deque()
        self.orphans: set[str] = set()
        self.lease_until = 0.0

    def write(self, write: Write) -> None:
        """Takes it to be done later."""
        self.late.append(write)

    def catch_up(self) -> None:
        """Does all that waits."""
        while self.late:
            write = self.late.popleft()
            super().write(write)
            if isinstance(write, SaveRequest):
                self.requests[write.request_id].received = self._harness.now

    def claim(self, request_id: str) -> Claim:
        """What a dead broker owned cannot be had before its lease has run out."""
        self.catch_up()
        if request_id in self.orphans and self._harness.now < self.lease_until:
            return Claim.FOREIGN
        self.orphans.discard(request_id)
        return super().claim(request_id)

    def expire(self, *request_ids: str) -> None:
        """Records of a dead broker that nobody claims have come to the end of their time."""
        for request_id in request_ids:
            self.orphans.remove(request_id)
            self._drop(request_id)


class MortalHarness(Harness):
    """A durable harness whose core can be replaced."""

    def __init__(self, **settings: object) -> None:
        super().__init__(durable=True, wall=lambda: self.now, **settings)
        self.store: LateStore = LateStore(self)

    def restart(self) -> tuple[set[str], set[str]]:
        """The broker dies, and another begins. Returns which requests are not stored, and whose tokens are not all."""
        store = self.store
        unstored = {*self.core._board.requests.live, *self.core._board.requests.closing} - store.requests.keys()
        holed = {write.request_id for write in store.late if isinstance(write, AppendTokens)}
        store.late.clear()
        store.orphans |= store.requests.keys() - store._parked.keys()
        store.lease_until = self.now + LEASE_S
        self.unanswered.clear()
        self.fetches.clear()
        self.questions.clear()
        self.mail.clear()
        self.full.clear()
        self.core = Core(self.settings, name="test", store="memory", durable=True, now=self.now, wall=lambda: self.now)
        return unstored, holed
