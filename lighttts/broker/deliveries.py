"""Frames on their way to clients: put out, timed as if they were played, and given up where nobody takes them."""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.endings import Endings
from lighttts.broker.instructions import Metric, Observe
from lighttts.broker.outbox import Frames
from lighttts.broker.requests import Request
from lighttts.errors import Overloaded


class Deliveries:
    """Hands frames of speech to the clients that have asked for them."""

    def __init__(self, board: Board, endings: Endings) -> None:
        self._board = board
        self._endings = endings

    def send(self, request: Request, frames: Frames, rows: int, last: bool, now: float) -> None:
        """Puts a frame of `rows` samples, mel frames or tokens on its way, and `End` after the last one."""
        if rows:
            self._time(request, rows, now)
        request.flow.last_at = now
        request.flow.frames += 1
        request.outbox.add(frames)
        self._board.step.instructions.append(request.outbox)
        if last:
            self._endings.complete(request, now)
        if self._board.output.exceeded:
            self._relieve(now)

    def _time(self, request: Request, rows: int, now: float) -> None:
        """What the listener heard of it. A frame without rows, as may end a request, is not waited for."""
        flow, instructions = request.flow, self._board.step.instructions
        if flow.rows:
            instructions.append(Observe(Metric.CHUNK_INTERVAL, now - flow.last_at))
        else:
            flow.plays_until = now
            instructions.append(Observe(Metric.FIRST_AUDIO, now - request.received))
        if request.asked.output == "audio":
            if now > flow.plays_until:
                instructions.append(Observe(Metric.UNDERRUNS, 1.0))
                flow.plays_until = now
            flow.plays_until += rows / (self._board.workers.sample_rate or 1)
        flow.rows += rows

    def _relieve(self, now: float) -> None:
        """Too much waits for clients that take nothing: the one with most waiting is given up."""
        requests = self._board.requests
        worst = max((*requests.live.values(), *requests.closing.values()), key=lambda request: request.outbox.size)
        error = Overloaded("the client does not take its frames: grant credit as they are used")
        self._endings.give_up(worst, error, now)
