"""How requests end: `End` or `Error` is offered until the client acknowledges it, then the request is forgotten."""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.instructions import DeleteRequest, Metric, ReleaseRequest, Reply, SaveState, Step
from lighttts.broker.outbox import Channel
from lighttts.broker.requests import CLOSED, ROWS_PER_SECOND, Request, State
from lighttts.broker.token_log import TokenLog
from lighttts.errors import Cancelled, LightTTSError, Unavailable
from lighttts.transport.wire import End, Error, encode

OFFER_INTERVAL_S = 2.0
"""Seconds without an acknowledgement after which `End` or `Error` is sent again."""
OFFER_LIMIT_S = 30.0
"""Seconds after which a client that does not acknowledge is given up."""
MOST = 2
"""Live requests at most, and ended ones, in multiples of `max_requests`: a broker may have to take over all those of
another, and where many end at the same time each client must be told."""
LINE_BYTES = 4000
NAME_BYTES = 128


class Endings:
    """Completes, fails and forgets requests, and counts them."""

    def __init__(self, board: Board, dispatcher: Dispatcher) -> None:
        self._board = board
        self._step = board.step
        self._requests = board.requests
        self._dispatcher = dispatcher
        self.completed = 0
        self.failed = 0
        self.parked = 0

    def complete(self, request: Request, now: float) -> None:
        """All output of `request` is in its outbox: `End` follows it."""
        request.move(State.FLUSHING, now)
        self._step.add(SaveState(request.id, request.state.value))
        self._measure(request, now)
        request.farewell = encode(End(request.id, request.flow.frames, request.log.tokens, request.log.sentence))
        request.outbox.add(request.farewell)
        self.settle(request, now)

    def settle(self, request: Request, now: float) -> None:
        """Sends what the client's credit allows; once that is everything, the request is ending."""
        self._step.add(request.outbox)
        if request.state is State.FLUSHING and request.outbox.covered():
            self.completed += 1
            self._close(request, State.ENDING, now, "")

    def fail(self, request: Request, error: LightTTSError, now: float) -> None:
        """Ends a live request with `error`; every worker that holds a part of it is told to drop it."""
        self._dispatcher.withdraw(request)
        if request.told:
            self.return_errand(request, error, now)
            return
        request.outbox.clear()
        request.farewell = error_frames(request.id, error)
        request.outbox.add(request.farewell)
        self._step.add(request.outbox)
        self.failed += 1
        self._step.observe(Metric.FAILURES, label=error.code)
        self._close(request, State.CANCELLED if isinstance(error, Cancelled) else State.FAILED, now, error.code)

    def return_errand(self, request: Request, outcome: str | LightTTSError, now: float) -> None:
        """Ends an errand: whoever waits for it is told what its voice's features are called, or what went wrong."""
        assert request.told is not None
        if isinstance(outcome, LightTTSError):
            self._step.observe(Metric.FAILURES, label=outcome.code)
            request.move(State.FAILED, now)
        request.move(State.FORGOTTEN, now)
        self._board.prompts.free(request.drop_audio())
        self._requests.remove(request)
        request.told(outcome, now)

    def give_up(self, request: Request, error: LightTTSError, now: float) -> None:
        """What waits for the client of a request, be it live or closing, gives way to `error`."""
        if request.state not in CLOSED:
            self.fail(request, error, now)
            return
        request.outbox.clear()
        request.farewell = error_frames(request.id, error)
        request.outbox.add(request.farewell)
        self._step.add(request.outbox)
        self._step.observe(Metric.FAILURES, label=error.code)

    def vanish(self, client: bytes, now: float) -> None:
        """The client is gone: nothing more is done for it, unless it comes back soon. Of a text in pieces nobody could
        say how much had come."""
        for request in tuple(self._requests.clients.get(client, {}).values()):
            if request.told:
                self.fail(request, Cancelled("the client is gone"), now)
            elif request.in_pieces:
                self.drop(request, now)
            elif request.state in (State.FAILED, State.CANCELLED):
                self.forget(request, now)
            else:
                self.park(request, now)

    def drop(self, request: Request, now: float) -> None:
        """Ends a request, at any time, of which nobody is to hear any more."""
        if request.state not in CLOSED:
            self.fail(request, Unavailable("the connection broke while the text was being written"), now)
        self.forget(request, now)

    def park(self, request: Request, now: float) -> None:
        """Leaves a request that has not failed to the broker its client comes to; workers are told to drop it."""
        self._dispatcher.withdraw(request)
        self._step.log("info", "request parked", request_id=request.id, state=request.state.value)
        self._step.observe(Metric.PARKED)
        self.parked += 1
        request.move(State.PARKED, now)
        request.outbox.clear()
        self._board.prompts.free(request.drop_audio())
        self._requests.remove(request)
        self._step.add(ReleaseRequest(request.id))

    def forget(self, request: Request, now: float) -> None:
        """Removes all trace of a closing request."""
        request.move(State.FORGOTTEN, now)
        request.outbox.clear()
        self._requests.remove(request)
        self._step.add(DeleteRequest(request.id))

    def tick(self, now: float) -> None:
        """Offers `End` and `Error` again to those who have not acknowledged, and gives up on some."""
        for request in tuple(self._requests.closing.values()):
            if now - request.closed >= OFFER_LIMIT_S:
                self._step.log("warning", "end never acknowledged", request_id=request.id)
                self.forget(request, now)
            elif now - request.offered >= OFFER_INTERVAL_S:
                self._offer(request, now)

    def _offer(self, request: Request, now: float) -> None:
        if not request.outbox:
            request.outbox.add(request.farewell)
        request.offered = now
        self._step.add(request.outbox)

    def _close(self, request: Request, state: State, now: float, code: str) -> None:
        request.move(state, now)
        request.closed = request.offered = now
        self._board.prompts.free(request.drop_audio())
        request.encoded = request.live = None
        self._requests.close(request)
        self._step.add(SaveState(request.id, state.value))
        self._step.observe(Metric.DURATION, now - request.received)
        self._step.log(
            "info" if state is not State.FAILED else "warning",
            "request closed",
            request_id=request.id,
            state=state.value,
            code=code,
            seconds=round(now - request.received, 3),
            tokens=request.log.tokens,
            frames=request.flow.frames,
        )
        request.log = TokenLog()
        if len(self._requests.closing) > MOST * self._board.settings.max_requests:
            self.forget(next(iter(self._requests.closing.values())), now)

    def _measure(self, request: Request, now: float) -> None:
        rate = ROWS_PER_SECOND.get(request.asked.output, self._board.workers.sample_rate)
        if request.flow.rows and rate:
            self._step.observe(Metric.REAL_TIME_FACTOR, (now - request.received) * rate / request.flow.rows)


def refuse(step: Step, client: bytes, request_id: str, error: LightTTSError) -> None:
    """Answers a client with an error outside any request the broker keeps."""
    step.add(Reply(Channel.CLIENTS, client, error_frames(request_id, error)))


def error_frames(request_id: str, error: LightTTSError) -> list[bytes | memoryview]:
    """The `Error` message for `error`."""
    retry_after_ms = min(2**32 - 1, round(1000 * (error.retry_after or 0)))
    text, field = _clip(error.text, LINE_BYTES), _clip(error.field, NAME_BYTES)
    return encode(Error(request_id, error.code, text, field, error.retryable, retry_after_ms))


def _clip(text: str, size: int) -> str:
    return text.encode(errors="replace")[:size].decode(errors="ignore")
