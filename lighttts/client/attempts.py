"""Requests that are begun again when they fail: a layer between the client's loop and its `Session`, pure as that is.

An attempt fails for good when its error is not retryable, when a chunk has been handed over (it would be heard twice),
when its tries or its deadline are used up, or when the client's budget is. Each retry has a request id of its own,
"<id>.1" and so on, for the broker may still know the last one. Whoever waits sees one request, under its first id.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from lighttts.client.events import FINAL, Arrived, Deliver, Event, Failed, Instruction
from lighttts.client.retry import Budget, backoff
from lighttts.client.session import Session
from lighttts.errors import Cancelled, LightTTSError
from lighttts.transport.wire import SpeechRequest


@dataclass
class _Request:
    """`current`: the id of the attempt in the session; `due`: when the next one begins, infinity while one is on."""

    asked: SpeechRequest
    retries: int
    deadline: float
    current: str
    tried: int = 0
    handed_over: bool = False
    due: float = math.inf


class Attempts:
    """Opens requests in `session` and takes its instructions; `chance` gives numbers drawn evenly from 0 to 1."""

    def __init__(self, session: Session, budget: Budget, chance: Callable[[], float] = random.random) -> None:
        self._session = session
        self._budget = budget
        self._chance = chance
        self._requests: dict[str, _Request] = {}
        self._attempts: dict[str, _Request] = {}
        self._cancelled: list[Instruction] = []

    def open(self, asked: SpeechRequest, retries: int, now: float) -> None:
        """Begins a request, and up to `retries` times again."""
        self._budget.earn(now)
        if retries:
            deadline = now + asked.deadline_ms / 1000 if asked.deadline_ms else math.inf
            request = _Request(asked, retries, deadline, asked.request_id)
            self._requests[asked.request_id] = self._attempts[asked.request_id] = request
        self._session.open(asked, now)

    def consumed(self, request_id: str, now: float) -> None:
        """The caller has taken one chunk."""
        self._session.consumed(self._current(request_id), now)

    def cancel(self, request_id: str, now: float) -> None:
        """The caller wants no more of the request. Idempotent."""
        request = self._requests.get(request_id)
        if request and request.due < math.inf:
            self._forget(request)
            self._cancelled.append(Deliver(request_id, Failed(Cancelled("the request was cancelled"))))
        else:
            self._session.cancel(self._current(request_id), now)

    def take(self, now: float) -> list[Instruction]:
        """The session's instructions since the last call, without the failures that are tried again."""
        taken, self._cancelled = self._cancelled, []
        for instruction in self._session.take():
            request = self._attempts.get(str(instruction.key)) if isinstance(instruction, Deliver) else None
            if request is None or not isinstance(instruction, Deliver):
                taken.append(instruction)
            elif not self._again(request, instruction.event, now):
                taken.append(Deliver(request.asked.request_id, instruction.event))
        return taken

    def next_due(self) -> float:
        """When `tick` must be called at the latest; infinity if never."""
        return min((request.due for request in self._requests.values()), default=math.inf)

    def tick(self, now: float) -> None:
        """Begins the attempts that are due."""
        for request in self._requests.values():
            if now >= request.due:
                self._begin(request, now)

    def _current(self, request_id: str) -> str:
        request = self._requests.get(request_id)
        return request.current if request else request_id

    def _again(self, request: _Request, event: Event, now: float) -> bool:
        """Whether `event` is a failure that the caller need not know of."""
        if isinstance(event, Arrived):
            request.handed_over = True
        if not isinstance(event, FINAL):
            return False
        del self._attempts[request.current]
        if isinstance(event, Failed) and self._worth_it(request, event.error):
            wait = backoff(request.tried + 1, event.error.retry_after, self._chance())
            if now + wait < request.deadline and self._budget.spend(now):
                request.due = now + wait
                return True
        self._forget(request)
        return False

    def _worth_it(self, request: _Request, error: LightTTSError) -> bool:
        return error.retryable and not request.handed_over and request.tried < request.retries

    def _begin(self, request: _Request, now: float) -> None:
        request.tried += 1
        request.due = math.inf
        request.current = f"{request.asked.request_id}.{request.tried}"
        self._attempts[request.current] = request
        left = 0 if request.deadline == math.inf else max(1, math.ceil(1000 * (request.deadline - now)))
        self._session.open(replace(request.asked, request_id=request.current, deadline_ms=left), now)

    def _forget(self, request: _Request) -> None:
        self._attempts.pop(request.current, None)
        del self._requests[request.asked.request_id]
