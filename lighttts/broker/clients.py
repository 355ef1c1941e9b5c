"""What clients say, and what follows."""

from __future__ import annotations

from collections.abc import Callable

from lighttts import __version__
from lighttts.broker.admission import admit
from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings, refuse
from lighttts.broker.instructions import Metric, Reply, SaveRequest
from lighttts.broker.live import Live
from lighttts.broker.outbox import Channel, Outbox
from lighttts.broker.pieces import Pieces
from lighttts.broker.requests import CLOSED, Request, State, audio_bytes
from lighttts.broker.resume import Resumption
from lighttts.broker.slow import SlowClients
from lighttts.broker.voice_names import VoiceNames
from lighttts.broker.voices import VoiceDesk
from lighttts.errors import Cancelled, LightTTSError, ProtocolError
from lighttts.transport.wire import (
    STAGES,
    AddVoice,
    Cancel,
    Convert,
    Credit,
    EndAck,
    Finish,
    Flush,
    GetStatus,
    Hello,
    ListVoices,
    Message,
    Piece,
    Resume,
    SpeechRequest,
    Status,
    Synth,
    VoiceAction,
    Welcome,
    decode,
    encode,
)


class Clients:
    """Handles the messages of clients."""

    def __init__(
        self,
        board: Board,
        dispatcher: Dispatcher,
        endings: Endings,
        resumption: Resumption,
        desk: VoiceDesk,
        names: VoiceNames,
        pieces: Pieces,
    ) -> None:
        self._names = names
        self._board = board
        self._step = board.step
        self._settings = board.settings
        self._requests = board.requests
        self._workers = board.workers
        self._dispatcher = dispatcher
        self._endings = endings
        self._resumption = resumption
        self._slow = SlowClients(board.requests, endings, board.settings.slow_client_s)
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Hello: self._hello,
            Synth: self._speech,
            Convert: self._speech,
            Resume: resumption.ask,
            Piece: pieces.hear,
            Flush: pieces.hear,
            Finish: pieces.hear,
            Credit: self._credit,
            Cancel: self._cancel,
            EndAck: self._end_ack,
            ListVoices: desk.list,
            AddVoice: desk.add,
            VoiceAction: desk.act,
            GetStatus: self._get_status,
        }

    def receive(self, client: bytes, frames: list[bytes], now: float) -> None:
        """Handles one message from the clients' socket; what is no message of a client is answered with an `Error`."""
        try:
            message = decode(frames)
        except ProtocolError as error:
            self._board.refusals.add("malformed", error.text)
            refuse(self._step, client, "", error)
            return
        handler = self._handlers.get(type(message))
        if handler:
            handler(client, message, now)
            return
        text = f"{type(message).__name__} is not a message of a client"
        self._board.refusals.add("wrong_role", text)
        refuse(self._step, client, "", ProtocolError(f"{text}: workers connect to another address"))

    def stored(self, request_id: str, error: LightTTSError | None, now: float) -> None:
        """The record of a new request is safe, or could not be written."""
        request = self._requests.live.get(request_id)
        if request is None or request.state is not State.RECEIVED:
            return
        if error:
            self._endings.fail(request, error, now)
        else:
            self._admit(request, now)

    def tick(self, now: float) -> None:
        """Time has passed: looks at how fast requests end, which clients are slow, and which quotas are unused."""
        self._board.pace.tick(self._endings.completed + self._endings.failed, now)
        self._board.quotas.tick(now)
        self._slow.tick(now)

    # ---- requests ------------------------------------------------------------------------------------------------

    def _speech(self, client: bytes, message: SpeechRequest, now: float) -> None:
        try:
            admit(client, message, self._board, now)
        except LightTTSError as error:
            self._step.observe(Metric.FAILURES, label=error.code)
            refuse(self._step, client, message.request_id, error)
            return
        credit = min(message.credit, self._settings.max_credit)
        allowed = message.deadline_ms / 1000 or self._settings.deadline_s
        outbox = Outbox(Channel.CLIENTS, client, self._board.output, credit)
        request = Request(message.request_id, client, message, outbox, received=now, deadline=now + allowed)
        request.live = Live(now) if request.in_pieces else None
        self._board.prompts.hold(audio_bytes(message))
        self._requests.add(request)
        self._step.observe(Metric.REQUESTS, label=request.method)
        self._step.log("info", "request received", request_id=request.id, method=request.method, output=message.output)
        self._step.add(SaveRequest(request.id, self._board.who(client), encode(message)))
        if not self._board.durable:
            self._admit(request, now)

    def _admit(self, request: Request, now: float) -> None:
        request.move(State.ADMITTED, now)
        self._dispatcher.accept(request)
        self._names.admit(request, now)

    def _credit(self, client: bytes, message: Credit, now: float) -> None:
        request = self._requests.owned(client, message.request_id)
        if request:
            request.outbox.credit = min(request.outbox.credit + message.frames, self._settings.max_credit)
            self._endings.settle(request, now)
        else:
            self._resumption.credit(client, message.request_id, message.frames)

    def _cancel(self, client: bytes, message: Cancel, now: float) -> None:
        request = self._requests.owned(client, message.request_id)
        if request is None:
            self._resumption.cancel(client, message.request_id)
            refuse(self._step, client, message.request_id, Cancelled("there is no such request any more"))
        elif request.state not in CLOSED:
            self._endings.fail(request, Cancelled("the request was cancelled"), now)

    def _end_ack(self, client: bytes, message: EndAck, now: float) -> None:
        request = self._requests.owned(client, message.request_id)
        if request and request.state in CLOSED:
            self._endings.forget(request, now)

    # ---- questions -----------------------------------------------------------------------------------------------

    def _hello(self, client: bytes, message: Hello, now: float) -> None:
        self._answer(client, self._welcome())

    def _get_status(self, client: bytes, message: GetStatus, now: float) -> None:
        waiting = self._requests.waiting
        status = Status(
            query_id=message.query_id,
            broker=self._board.name,
            store=self._board.store,
            uptime_s=now - self._board.started,
            queued=waiting,
            active=len(self._requests.live) - waiting,
            completed=self._endings.completed,
            failed=self._endings.failed,
            workers=self._workers.rows(now),
        )
        self._answer(client, status)

    def probe(self) -> None:
        """Repeats `Welcome` to clients with live requests: one that is gone shows by it, also while nothing is sent."""
        for client in {request.client for request in self._requests.live.values()}:
            self._answer(client, self._welcome())

    def _welcome(self) -> Welcome:
        software = f"lighttts {__version__}"
        ready = all(self._workers.absent_since(stage) is None for stage in STAGES)
        return Welcome(self._board.name, software, self._settings.max_text, self._settings.max_credit, ready)

    def _answer(self, client: bytes, message: Message) -> None:
        self._step.add(Reply(Channel.CLIENTS, client, encode(message)))
