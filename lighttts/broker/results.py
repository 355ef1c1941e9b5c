"""Stage results: checked against the worker that holds the request, then relayed unchanged.

A frame of tokens, mel or audio is never decoded as a whole: a few fields of its body are looked at, and its bytes go on
as they came. Frames of another epoch or attempt than the one at work are dropped and counted; a gap or a repeat in the
sequence means that samples would be lost or heard twice, so it ends the request.
"""

from __future__ import annotations

from collections.abc import Callable

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.instructions import AppendTokens, Metric, Observe, SaveEncoded, SaveState
from lighttts.broker.outbox import Frames
from lighttts.broker.pieces import Pieces
from lighttts.broker.requests import Request, State
from lighttts.broker.takeover import Takeover
from lighttts.broker.token_log import TOKEN_BYTES
from lighttts.broker.voice_traces import Traces
from lighttts.broker.workers import Worker
from lighttts.errors import Overloaded, ProtocolError, WorkerFailed, from_code
from lighttts.transport.wire import (
    REGISTRY,
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
        self._live = board.requests.live
        self._workers = board.workers
        self._dispatcher = dispatcher
        self._endings = endings
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
            self._garbled(frames, now)

    def tick(self) -> None:
        """Tells how many frames were relayed since the last tick."""
        for kind, count in self._relayed.items():
            if count:
                self._step.observe(Metric.FRAMES, count, kind)
                self._relayed[kind] = 0

    # ---- frames that are relayed ---------------------------------------------------------------------------------

    def _media(self, cls: _Media, frames: Frames, now: float) -> None:
        fields = unpack_body(cls, frames[1])
        request = self._current(fields[_ID], fields[_ATTEMPT], fields[_EPOCH], "decode", now)
        if request is None:
            return
        last, sentence, rows = fields[_LAST[cls]], fields[_SENTENCE[cls]], _rows(fields[-1], frames)
        if fields[_SEQ] != request.flow.frames:
            self._misordered(request, "decode", fields[_SEQ], request.flow.frames, now)
        elif (
            rows is None
            or type(last) is not bool
            or type(sentence) is not int
            or not request.flow.sentence <= sentence <= request.log.sentence
            or _OUTPUT[cls] != request.asked.output
            or (last and request.state is not State.DECODING)
        ):
            self._broken(request, "decode", now)
        else:
            if last:
                self._stage_done("decode", request, now)
            if request.suspect("decode"):
                self._takeover.acquit("decode", request, now)
            request.flow.hear(sentence)
            self._relayed[request.asked.output] += 1
            self._deliver(request, frames, rows, last, now)

    def _tokens(self, frames: Frames, now: float) -> None:
        fields = unpack_body(Tokens, frames[1])
        request = self._current(fields[_ID], fields[_ATTEMPT], fields[_EPOCH], "llm", now)
        if request is None:
            return
        log, live = request.log, request.live
        last, final, rows = fields[_LAST[Tokens]], fields[_FINAL], _rows(fields[-1], frames)
        if fields[_SEQ] != len(log):
            self._misordered(request, "llm", fields[_SEQ], len(log), now)
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
            self._broken(request, "llm", now)
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
            self._deliver(request, frames, rows, last, now)
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

    def _deliver(self, request: Request, frames: Frames, rows: int, last: bool, now: float) -> None:
        """Puts a frame on its way to the client, and `End` after the last one."""
        self._time(request, rows, now)
        request.outbox.add(frames)
        self._step.instructions.append(request.outbox)
        if last:
            self._endings.complete(request, now)
        if self._board.output.exceeded:
            self._relieve(now)

    def _time(self, request: Request, rows: int, now: float) -> None:
        flow, instructions = request.flow, self._step.instructions
        if flow.frames:
            instructions.append(Observe(Metric.CHUNK_INTERVAL, now - flow.last_at))
        else:
            flow.plays_until = now
            instructions.append(Observe(Metric.FIRST_AUDIO, now - request.received))
        if request.asked.output == "audio":
            if now > flow.plays_until:
                instructions.append(Observe(Metric.UNDERRUNS, 1.0))
                flow.plays_until = now
            flow.plays_until += rows / (self._workers.sample_rate or 1)
        flow.last_at = now
        flow.frames += 1
        flow.rows += rows

    def _relieve(self, now: float) -> None:
        """Too much waits for clients that take nothing: the one with most waiting is given up."""
        requests = self._board.requests
        worst = max((*requests.live.values(), *requests.closing.values()), key=lambda request: request.outbox.size)
        error = Overloaded("the client does not take its frames: grant credit as they are used")
        self._endings.give_up(worst, error, now)

    # ---- results that are used up --------------------------------------------------------------------------------

    def _encoded(self, frames: Frames, now: float) -> None:
        message = decode(frames)
        if not isinstance(message, Encoded):
            return
        request = self._current(message.request_id, message.attempt, message.epoch, "encode", now)
        if request is None:
            return
        if not request.fits(message):
            self._broken(request, "encode", now)
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
        request = self._current(message.request_id, message.attempt, message.epoch, "encode", now)
        if request is None:
            return
        request.holders["encode"].breaker.succeeded()
        self._dispatcher.release("encode", request)
        if request.suspect("encode"):
            self._takeover.acquit("encode", request, now)
        try:
            self._pieces.encoded(request, message, now)
        except ValueError:
            self._broken(request, "encode", now)

    def _stage_failed(self, frames: Frames, now: float) -> None:
        message = decode(frames)
        if not isinstance(message, StageFailed):
            return
        request = self._live.get(message.request_id)
        stage = next((name for name, w in request.holders.items() if w.epoch == message.epoch), "") if request else ""
        request = self._current(message.request_id, message.attempt, message.epoch, stage, now)
        if request is None:
            return
        error = from_code(message.code, message.text, field=message.field, retryable=message.retryable)
        if isinstance(error, WorkerFailed):
            self._takeover.failed(stage, request, error, now)
            return
        request.holders[stage].breaker.succeeded()
        self._dispatcher.release(stage, request)
        self._endings.fail(request, error, now)

    # ---- checks --------------------------------------------------------------------------------------------------

    def _current(self, request_id: object, attempt: object, epoch: object, stage: str, now: float) -> Request | None:
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

    def _stale(self, why: str, request_id: object, attempt: object, epoch: object) -> None:
        """Drops and counts a result; a worker that still works for nobody is told so, once."""
        self._board.refusals.add(why, f"result for request {request_id!s:.64}")
        worker = self._workers.by_epoch(epoch)
        if worker and type(request_id) is str and type(attempt) is int and _sane(request_id, attempt):
            self._tell(worker, request_id, attempt)

    def _tell(self, worker: Worker, request_id: str, attempt: int) -> None:
        if request_id not in worker.active and request_id not in worker.aborted:
            self._dispatcher.abort(worker, request_id, attempt)

    def _garbled(self, frames: list[bytes], now: float) -> None:
        """A result that cannot be read leaves its request waiting for it: if it says which one, that fails now."""
        try:
            request_id, attempt, epoch = unpack_body(REGISTRY[frames[0][3]], frames[1], frames[0][2])[:3]
        except ProtocolError:
            return
        request = self._live.get(request_id) if type(request_id) is str else None
        for stage, worker in tuple(request.holders.items()) if request else ():
            if request and worker.epoch == epoch and request.attempts[stage] == attempt:
                self._broken(request, stage, now)

    def _misordered(self, request: Request, stage: str, got: object, wanted: int, now: float) -> None:
        self._step.log("error", "frames out of order", request_id=request.id, stage=stage, got=got, wanted=wanted)
        self._endings.fail(
            request, WorkerFailed(f"the {stage} worker lost or repeated a frame: send the request again"), now
        )

    def _broken(self, request: Request, stage: str, now: float) -> None:
        self._step.log("error", "result makes no sense", request_id=request.id, stage=stage)
        self._endings.fail(
            request, WorkerFailed(f"the {stage} worker sent a frame that makes no sense: send the request again"), now
        )

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


def _sane(request_id: str, attempt: int) -> bool:
    return 0 < len(request_id.encode(errors="replace")) <= 64 and 0 <= attempt < 2**16
