"""The places of a stage, shared by the worker's brokers: each may fill them all, and the last to come must wait."""

from __future__ import annotations

from lighttts.transport import wire
from lighttts.workers.compute import Accept, Compute, Drop, DropAll
from lighttts.workers.stage import Work


class Places:
    """Lets `capacity` requests in to `compute`; those beyond wait in line, first come, first served.

    Every broker is granted the whole capacity, for it cannot know what the others send. So the line is never longer
    than the capacity of all brokers but one, and with one broker nobody waits. What follows on work in line waits with
    it, in order; how much that is, its broker bounds.
    """

    def __init__(self, compute: Compute, capacity: int) -> None:
        self._compute = compute
        self._capacity = capacity
        self._taken: set[Work] = set()
        self._line: dict[Work, list[wire.Message]] = {}

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def enter(self, work: Work, message: wire.Message) -> None:
        """New work takes a place, or the end of the line."""
        self._line[work] = [message]
        self._admit()

    def follow(self, work: Work, message: wire.Message) -> None:
        """More input of work that has entered."""
        line = self._line.get(work)
        if line is None:
            self._compute.submit(Accept(work, message, new=False))
        else:
            line.append(message)

    def done(self, work: Work) -> None:
        """The engine has let go of `work`."""
        self._taken.discard(work)
        self._admit()

    def drop(self, work: Work) -> bool:
        """Ends `work`: True if it was in line and is gone; if not, the engine, which may have it, is told to let go."""
        if self._line.pop(work, None):
            return True
        self._compute.submit(Drop(work))
        self.done(work)
        return False

    def clear(self, seat: int, generation: int) -> None:
        """Ends all work of `seat`; what enters from there afterwards belongs to `generation`."""
        self._compute.submit(DropAll(seat, generation))
        self._line = {work: messages for work, messages in self._line.items() if work.seat != seat}
        self._taken = {work for work in self._taken if work.seat != seat}
        self._admit()

    def _admit(self) -> None:
        # What was dropped has its place no longer, though the engine may be in a step with it: it obeys in order.
        while self._line and len(self._taken) < self._capacity:
            work = next(iter(self._line))
            first, *more = self._line.pop(work)
            self._taken.add(work)
            self._compute.submit(Accept(work, first, new=True))
            for message in more:
                self._compute.submit(Accept(work, message, new=False))
