"""What becomes of work whose worker is lost: another worker goes on with it, unless the work is what kills workers.

A request whose worker dies is a suspect until a result of it comes. Which of a dead worker's suspects was the cause
cannot be seen, so suspects are told apart: one that has outlived two workers gets a worker that has no other suspect.
A suspect that was the only one on a worker that dies is the cause, and fails as poison.
"""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.requests import Request
from lighttts.broker.workers import Worker
from lighttts.errors import LightTTSError, Poison


class Takeover:
    """Hands the work of lost workers to others."""

    def __init__(self, board: Board, dispatcher: Dispatcher, endings: Endings) -> None:
        self._step = board.step
        self._dispatcher = dispatcher
        self._endings = endings

    def lost(self, worker: Worker, now: float, *, died: bool) -> None:
        """`worker`, which is in no table any more, has lost all it held. `died`: what it held may be the cause."""
        if died and worker.active:
            self._dispatcher.blame(worker, now)
        for request in tuple(worker.active.values()):
            self._dispatcher.release(worker.stage, request)
            self._again(worker.stage, request, now, died=died, cause=_poison(worker.stage))

    def failed(self, stage: str, request: Request, error: LightTTSError, now: float) -> None:
        """A worker that goes on could not do its part of `request`, and has dropped it."""
        self._dispatcher.blame(request.holders[stage], now)
        self._dispatcher.release(stage, request)
        self._again(stage, request, now, died=True, cause=error)

    def acquit(self, stage: str, request: Request, now: float) -> None:
        """A result of `request`, a suspect, has come: it is nobody's death, and other suspects need not wait for it."""
        request.deaths[stage] = 0
        request.isolated.discard(stage)
        self._dispatcher.run(stage, now)

    def _again(self, stage: str, request: Request, now: float, *, died: bool, cause: LightTTSError) -> None:
        if died and request.suspect(stage) and stage in request.isolated:
            self._endings.fail(request, cause, now)
            return
        request.deaths[stage] += died
        request.renumber(stage)
        self._step.log("warning", "work taken over", request_id=request.id, stage=stage, deaths=request.deaths[stage])
        self._dispatcher.enter(stage, request, now, first=True)


def _poison(stage: str) -> Poison:
    return Poison(f"the request has ended two {stage} workers: it is not tried again; the workers' logs may say why")
