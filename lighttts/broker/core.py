"""The broker as a pure state machine: an event and the time in, instructions out. No socket, no store, no clock.

What happens is told by calling a method; the instructions it returns are to be carried out in order. Nothing here
waits, or fails because of what a peer sends: a message that makes no sense is answered, counted and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from lighttts.broker.board import Board
from lighttts.broker.clients import Clients
from lighttts.broker.control import Control
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.instructions import DeleteRequest, Instruction, Reply
from lighttts.broker.outbox import Channel, Outbox
from lighttts.broker.pieces import Pieces
from lighttts.broker.quota import by_connection
from lighttts.broker.results import Results
from lighttts.broker.resume import Resumption
from lighttts.broker.state import Found
from lighttts.broker.takeover import Takeover
from lighttts.broker.voice_inquiries import Inquiries
from lighttts.broker.voice_names import VoiceNames
from lighttts.broker.voice_questions import Answer
from lighttts.broker.voice_traces import Traces
from lighttts.broker.voices import VoiceDesk
from lighttts.config import BrokerConfig
from lighttts.errors import DeadlineExceeded, LightTTSError, NoWorker, Unavailable, UnknownRequest
from lighttts.transport.wire import STAGES

PROBE_INTERVAL_S = 2.0
"""Seconds between two looks at whether clients with live requests are still there."""

ANSWERS_KEPT = 64
"""Most answers outside any request that wait for a peer that does not read; it has no right to more."""


class Load(NamedTuple):
    """How much there is of what; `workers`: registered ones, by stage."""

    waiting: int
    active: int
    closing: int
    held_bytes: int
    workers: dict[str, int]


class Core:
    """All of the broker's knowledge. `durable`: the state store answers when a new request's record is safe.

    `who`: what a client's routing id stands for, see `Board`. `wall` tells Unix time.
    """

    def __init__(
        self,
        settings: BrokerConfig,
        *,
        name: str,
        store: str,
        durable: bool,
        now: float,
        who: Callable[[bytes], bytes] = by_connection,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._board = board = Board(settings, name, store, durable, now, who)
        self._step = board.step
        dispatcher = Dispatcher(board)
        self._dispatcher = dispatcher
        self._endings = Endings(board, dispatcher)
        takeover = Takeover(board, dispatcher, self._endings)
        self._control = Control(board, dispatcher, takeover)
        self._inquiries = Inquiries(board)
        self._traces = Traces(board, dispatcher)
        self._desk = VoiceDesk(board, dispatcher, self._inquiries, self._traces, wall)
        names = VoiceNames(board, dispatcher, self._endings, self._inquiries)
        self._resumption = Resumption(board, dispatcher, self._endings, names, wall)
        self._pieces = Pieces(board, dispatcher, self._endings)
        self._clients = Clients(board, dispatcher, self._endings, self._resumption, self._desk, names, self._pieces)
        self._results = Results(board, dispatcher, self._endings, takeover, self._traces, self._pieces)
        self._blocked: dict[Outbox, None] = {}
        self._answers: dict[tuple[Channel, bytes], Outbox] = {}
        self._probed = now

    # ---- messages ------------------------------------------------------------------------------------------------

    def client_message(self, client: bytes, frames: list[bytes], now: float) -> list[Instruction]:
        """A message has come from a client."""
        self._clients.receive(client, frames, now)
        return self._step.finish()

    def worker_message(self, identity: bytes, frames: list[bytes], now: float) -> list[Instruction]:
        """A message has come on a worker's control connection."""
        self._control.receive(identity, frames, now)
        return self._step.finish()

    def result(self, frames: list[bytes], now: float) -> list[Instruction]:
        """A stage's result has come."""
        self._results.receive(frames, now)
        return self._step.finish()

    # ---- what became of instructions -----------------------------------------------------------------------------

    def stored(self, request_id: str, error: LightTTSError | None, now: float) -> list[Instruction]:
        """A `SaveRequest` is safe (`error` None), or failed."""
        self._clients.stored(request_id, error, now)
        return self._step.finish()

    def fetched(self, request_id: str, found: Found, now: float) -> list[Instruction]:
        """A `Fetch` has brought a request, or why there is none."""
        self._resumption.fetched(request_id, found, now)
        return self._step.finish()

    def voices_answered(self, number: int, answer: Answer, now: float) -> list[Instruction]:
        """An `AskVoices` is answered."""
        self._inquiries.answered(number, answer, now)
        return self._step.finish()

    def claimed(self, request_id: str, now: float) -> list[Instruction]:
        """Another broker has taken a request over: this one has no more to do with it."""
        request = self._board.requests.live.get(request_id)
        if request:
            self._endings.fail(request, UnknownRequest("another broker has taken the request over"), now)
        return self._step.finish()

    def gone(self, channel: Channel, peer: bytes, now: float) -> list[Instruction]:
        """`peer` has no connection any more."""
        answers = self._answers.pop((channel, peer), None)
        if answers:
            answers.clear()
        if channel is Channel.CLIENTS:
            self._endings.vanish(peer, now)
        else:
            self._control.gone(peer, now)
        return self._step.finish()

    def full(self, outbox: Outbox) -> None:
        """The peer of `outbox` takes no more now; it is tried again at the next tick."""
        self._blocked[outbox] = None

    def unanswered(self, reply: Reply) -> None:
        """The peer of `reply` takes no more now; a few answers are kept for it."""
        outbox = self._answers.get((reply.channel, reply.peer))
        if outbox is None:
            outbox = Outbox(reply.channel, reply.peer, self._board.output)
            self._answers[reply.channel, reply.peer] = outbox
        if len(outbox) < ANSWERS_KEPT:
            outbox.add(reply.frames)
            self._blocked[outbox] = None

    # ---- time and end --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed: to be called several times a second."""
        self._answers = {peer: outbox for peer, outbox in self._answers.items() if outbox}
        for outbox in self._blocked:
            self._step.add(outbox)
        self._blocked.clear()
        self._control.tick(now)
        self._pieces.tick(now)
        self._expire_requests(now)
        self._clients.tick(now)
        self._endings.tick(now)
        self._resumption.tick(now)
        self._desk.tick(now)
        self._traces.tick(now)
        self._board.refusals.tick(now)
        self._results.tick()
        if now - self._probed >= PROBE_INTERVAL_S:
            self._probed = now
            self._clients.probe()
        return self._step.finish()

    def stop_admitting(self) -> None:
        """New requests are refused from now on."""
        self._board.stopping = True

    def abandon(self, now: float) -> list[Instruction]:
        """The broker ends now: whatever is live fails, and nothing stays stored."""
        for request in tuple(self._board.requests.live.values()):
            self._endings.fail(request, Unavailable("the broker was stopped: send the request again"), now)
        for request_id in self._board.requests.closing:
            self._step.add(DeleteRequest(request_id))
        return self._step.finish()

    # ---- views ---------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no request is left, not even one to be acknowledged."""
        return not self._board.requests.live and not self._board.requests.closing

    def load(self) -> Load:
        """What there is now."""
        waiting = self._board.requests.waiting
        return Load(
            waiting,
            len(self._board.requests.live) - waiting,
            len(self._board.requests.closing),
            self._board.output.used,
            {stage: self._board.workers.count(stage) for stage in STAGES},
        )

    def known_peers(self, channel: Channel) -> set[bytes]:
        """Routing ids of the clients that wait for something, or of the workers."""
        if channel is Channel.CLIENTS:
            return {*self._board.requests.clients, *self._inquiries.clients}
        return {worker.identity for worker in self._board.workers}

    # ---- within --------------------------------------------------------------------------------------------------

    def _expire_requests(self, now: float) -> None:
        patience = self._board.settings.no_worker_s
        for request in tuple(self._board.requests.live.values()):
            if now >= request.deadline:
                seconds = request.deadline - request.received
                late = DeadlineExceeded(f"not complete within {seconds:g} s: allow more time, or try again later")
                self._endings.fail(request, late, now)
            elif stage := self._dispatcher.missing_stage(request, now, patience):
                self._endings.fail(request, self._missing(stage, request.style(stage)), now)

    def _missing(self, stage: str, style: str) -> NoWorker:
        if style and self._board.workers.absent_since(stage, style=style) is not None:
            return NoWorker(f"no {stage} worker of style {style!r} is connected: start one with {stage}.style={style}")
        if self._board.workers.absent_since(stage) is None:
            return NoWorker(f"the {stage} workers are of an older version, which does not know this: upgrade them")
        return NoWorker(f"no {stage} worker is connected: start lighttts-{stage}, or look into its log")
