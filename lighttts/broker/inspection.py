"""Whose a result is, and what becomes of one that cannot be right.

Results of another epoch or attempt than the one at work are dropped and counted; a gap or a repeat in the sequence
means that samples would be lost or heard twice, so it ends the request.
"""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.requests import Request
from lighttts.errors import ProtocolError, WorkerFailed
from lighttts.transport.wire import REGISTRY, unpack_body


class Inspector:
    """Checks results against the worker that holds the request."""

    def __init__(self, board: Board, dispatcher: Dispatcher, endings: Endings) -> None:
        self._board = board
        self._live = board.requests.live
        self._dispatcher = dispatcher
        self._endings = endings

    def current(self, request_id: object, attempt: object, epoch: object, stage: str, now: float) -> Request | None:
        """The request a result belongs to, None (and counted) if it is not of the worker and attempt at work."""
        request = self._live.get(request_id) if type(request_id) is str else None
        worker = request.holders.get(stage) if request else None
        if request is None:
            why = "unknown"
        elif worker is None or worker.epoch != epoch:
            why = "stale_epoch"
        elif request.attempts[stage] != attempt:
            why = "stale_attempt"
        else:
            worker.seen = worker.moved = now
            return request
        self._stale(why, request_id, attempt, epoch)
        return None

    def stage_of(self, request_id: str, epoch: int) -> str:
        """The stage at which the worker of `epoch` holds that request; empty if it does not."""
        request = self._live.get(request_id)
        return next((stage for stage, w in request.holders.items() if w.epoch == epoch), "") if request else ""

    def garbled(self, frames: list[bytes], now: float) -> None:
        """A result that cannot be read leaves its request waiting for it: if it says which one, that fails now."""
        try:
            request_id, attempt, epoch = unpack_body(REGISTRY[frames[0][3]], frames[1], frames[0][2])[:3]
        except ProtocolError:
            return
        request = self._live.get(request_id) if type(request_id) is str else None
        for stage, worker in tuple(request.holders.items()) if request else ():
            if request and worker.epoch == epoch and request.attempts[stage] == attempt:
                self.broken(request, stage, now)

    def misordered(self, request: Request, stage: str, got: object, wanted: int, now: float) -> None:
        """A frame has the sequence number `got` in the place of `wanted`: ends the request."""
        self._board.step.log("error", "frames out of order", request_id=request.id, stage=stage, got=got, wanted=wanted)
        self._endings.fail(
            request, WorkerFailed(f"the {stage} worker lost or repeated a frame: send the request again"), now
        )

    def broken(self, request: Request, stage: str, now: float) -> None:
        """A result is not one of such a request at this time: ends the request."""
        self._board.step.log("error", "result makes no sense", request_id=request.id, stage=stage)
        self._endings.fail(
            request, WorkerFailed(f"the {stage} worker sent a frame that makes no sense: send the request again"), now
        )

    def _stale(self, why: str, request_id: object, attempt: object, epoch: object) -> None:
        """Drops and counts a result; a worker that still works for nobody is told so, once."""
        self._board.refusals.add(why, f"result for request {request_id!s:.64}")
        worker = self._board.workers.by_epoch(epoch)
        if worker is None or type(request_id) is not str or type(attempt) is not int:
            return
        known = request_id in worker.active or request_id in worker.aborted
        if not known and _sane(request_id, attempt):
            self._dispatcher.abort(worker, request_id, attempt)


def _sane(request_id: str, attempt: int) -> bool:
    return 0 < len(request_id.encode(errors="replace")) <= 64 and 0 <= attempt < 2**16
