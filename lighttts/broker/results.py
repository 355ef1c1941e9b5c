"""Stage results: frames of speech are relayed unchanged, all others are used up.

A frame of tokens, mel or audio is never decoded as a whole: a few fields of its body are looked at, and its bytes go on
as they came.
"""

from __future__ import annotations

from collections.abc import Callable

from lighttts.broker.board import Board
from lighttts.broker.deliveries import Deliveries
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.inspection import Inspector
from lighttts.broker.instructions import AppendTokens, Metric, SaveEncoded, SaveState
from lighttts.broker.outbox import Frames
from lighttts.broker.pieces import Pieces
from lighttts.broker.requests import Request, State
from lighttts.broker.takeover import Takeover
from lighttts.broker.token_log import TOKEN_BYTES
from lighttts.broker.voice_traces import Traces
from lighttts.errors import ProtocolError, WorkerFailed, from_code
from lighttts.transport.wire import (
    Audio,
    Encoded,
    EncodedText,
    Mel,
    Message,
    StageFailed,
    Tokens,
    decode,
    head,
    readdress,
    unpack_body,
)

_OUTPUT: dict[type[Message], str] = {Audio: "audio", Mel: "mel", Tokens: "tokens"}
_INDEX = {cls: {name: index for index, (name, _) in enumerate(cls.FIELDS)} for cls in (Tokens, Mel, Audio)}
_ID, _ATTEMPT, _EPOCH, _SEQ = (_INDEX[Audio][name] for name in ("request_id", "attempt", "epoch", "seq"))
_LAST, _SENTENCE = ({cls: index[name] for cls, index in _INDEX.items()} for name in ("last", "sentence"))
_FINAL = _INDEX[Tokens]["final"]
# The described array is the last field of each of these messages, its bytes the only payload frame.
_FRAME_FIELDS = 3
_Media = type[Audio] | type[Mel]


class Results:
    """Takes in what workers push."""

    def __init__(
        self,
        board: Board,
        dispatcher: Dispatcher,
        endings: Endings,
        takeover: Takeover,
        traces: Traces,
        pieces: Pieces,
    ) -> None:
        self._traces = traces
        self._board = board
        self._step = board.step
        self._takeover = takeover
        self._pieces = pieces
        self._dispatcher = dispatcher
        self._endings = endings
        self._inspector = Inspector(board, dispatcher, endings)
        self._deliveries = Deliveries(board, endings)
        self._relayed = dict.fromkeys(_OUTPUT.values(), 0)
        handlers: dict[type[Message], Callable[[Frames, float], None]] = {
            Audio: lambda frames, now: self._media(Audio, frames, now),
            Mel: lambda frames, now: self._media(Mel, frames, now),
            Tokens: self._tokens,
            Encoded: self._encoded,
            EncodedText: self._encoded_text,
            StageFailed: self._stage_failed,
        }
        self._handlers = {head(cls, version): call for cls, call in handlers.items() for version in cls.LENGTHS}

    def receive(self, frames: list[bytes], now: float) -> None:
        """Handles one message from the results socket."""
        handler = self._handlers.get(frames[0]) if len(frames) > 1 else None
        if handler is None:
            self._board.refusals.add("malformed", "not a result of a stage")
            return
        try:
            handler(frames, now)
        except ProtocolError as error:
            self._board.refusals.add("malformed", error.text)
            self._inspector.garbled(frames, now)

    def tick(self) -> None:
        """Tells how many frames were relayed since the last tick."""
        for kind, count in self._relayed.items():
            if count:
                self._step.observe(Metric.FRAMES, count, kind)
                self._relayed[kind] = 0

    # ---- frames that are relayed ---------------------------------------------------------------------------------

    def _media(self, cls: _Media, frames: Frames, now: float) -> None:
        fields = unpack_body(cls, frames[1])
        request = self._inspector.current(fields[_ID], fields[_ATTEMPT], fields[_EPOCH], "decode", now)
        if request is None:
            return
        last, sentence, rows = fields[_LAST[cls]], fields[_SENTENCE[cls]], _rows(fields[-1], frames)
        if fields[_SEQ] != request.flow.frames:
            self._inspector.misordered(request, "decode", fields[_SEQ], request.flow.frames, now)
        elif (
            rows is None
            or type(last) is not bool
            or type(sentence) is not int
            or not request.flow.sentence <= sentence <= request.log.sentence
            or _OUTPUT[cls] != request.asked.output
            or (last and request.state is not State.DECODING)
        ):
            self._inspector.broken(request, "decode", now)
        else:
            if last:
                self._stage_done("decode", request, now)
            if request.suspect("decode"):
                self._takeover.acquit("decode", request, now)
            request.flow.hear(sentence)
            self._relayed[request.asked.output] += 1
            self._deliveries.send(request, frames, rows, last, now)

    def _tokens(self, frames: Frames, now: float) -> None:
        fields = unpack_body(Tokens, frames[1])
        request = self._inspector.current(fields[_ID], fields[_ATTEMPT], fields[_EPOCH], "llm", now)
        if request is None:
            return
        log, live = request.log, request.live
        last, final, rows = fields[_LAST[Tokens]], fields[_FINAL], _rows(fields[-1], frames)
        if fields[_SEQ] != len(log):
            self._inspector.misordered(request, "llm", fields[_SEQ], len(log), now)
            return
        if (
            rows is None
            or len(frames[-1]) != TOKEN_BYTES * rows
            or type(final) is not bool
            or log.full
            or fields[_SENTENCE[Tokens]] != log.sentence
            or last is not (final and log.sentence == request.last_sentence)
            or (final and live is not None and not live.whole(log.sentence))
        ):
            self._inspector.broken(request, "llm", now)
            return
        if request.suspect("llm"):
            self._takeover.acquit("llm", request, now)
        self._step.add(AppendTokens(request.id, len(log), frames))
        log.add(frames, rows, final=final)
        if final:
            self._pieces.spoken(request, log.sentence - 1)
        self._relayed["tokens"] += 1
        if last:
            self._stage_done("llm", request, now)
        if request.asked.output == "tokens":
            self._deliveries.send(request, frames, rows, last, now)
        else:
            self._decode(request, frames, last, now)

    def _decode(self, request: Request, frames: Frames, last: bool, now: float) -> None:
        """Passes tokens to the decode worker that has the request; the first ones ask for such a worker."""
        if last:
            self._dispatcher.all_generated(request, now)
        worker = request.holders.get("decode")
        if worker:
            worker.outbox.add(readdress(frames, request.attempts["decode"]) if request.readdressed else frames)
            self._step.add(worker.outbox)
        elif len(request.log) == 1:
            self._dispatcher.enter("decode", request, now)

    # ---- results that are used up --------------------------------------------------------------------------------

    def _encoded(self, frames: Frames, now: float) -> None:
        message = decode(frames)
        if not isinstance(message, Encoded):
            return
        request = self._inspector.current(message.request_id, message.attempt, message.epoch, "encode", now)
        if request is None:
            return
        if not request.fits(message):
            self._inspector.broken(request, "encode", now)
            return
        self._stage_done("encode", request, now)
        if request.suspect("encode"):
            self._takeover.acquit("encode", request, now)
        request.move(State.ENCODED, now)
        if request.told:
            self._endings.return_errand(request, message.voice_key, now)
            return
        self._traces.encoded(request, message.voice_key)
        request.take(message)
        self._board.prompts.free(request.drop_audio())
        self._step.add(SaveEncoded(request.id, frames))
        self._step.add(SaveState(request.id, request.state.value))
        if request.live:
            self._pieces.move(request, now)
        else:
            self._dispatcher.onward(request, now)

    def _encoded_text(self, frames: Frames, now: float) -> None:
        message = decode(frames)
        assert isinstance(message, EncodedText)
        request = self._inspector.current(message.request_id, message.attempt, message.epoch, "encode", now)
        if request is None:
            return
        request.holders["encode"].breaker.succeeded()
        self._dispatcher.release("encode", request)
        if request.suspect("encode"):
            self._takeover.acquit("encode", request, now)
        try:
            self._pieces.encoded(request, message, now)
        except ValueError:
            self._inspector.broken(request, "encode", now)

    def _stage_failed(self, frames: Frames, now: float) -> None:
        message = decode(frames)
        if not isinstance(message, StageFailed):
            return
        stage = self._inspector.stage_of(message.request_id, message.epoch)
        request = self._inspector.current(message.request_id, message.attempt, message.epoch, stage, now)
        if request is None:
            return
        error = from_code(message.code, message.text, field=message.field, retryable=message.retryable)
        if isinstance(error, WorkerFailed):
            self._takeover.failed(stage, request, error, now)
            return
        request.holders[stage].breaker.succeeded()
        self._dispatcher.release(stage, request)
        self._endings.fail(request, error, now)

    def _stage_done(self, stage: str, request: Request, now: float) -> None:
        request.holders[stage].breaker.succeeded()
        self._dispatcher.release(stage, request)
        self._step.observe(Metric.STAGE, now - request.started[stage], stage)


def _rows(description: object, frames: Frames) -> int | None:
    """Rows of the array a frame carries, as its description says; None if there is no such array."""
    if len(frames) != _FRAME_FIELDS or type(description) is not list or len(description) != 2:
        return None
    rows = description[1]
    return rows if type(rows) is int and rows >= 0 else None
