"""Who works on what: requests wait for each stage in order of arrival and go to the worker with most granted credit."""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.breaker import BreakerState
from lighttts.broker.instructions import Metric, SaveState
from lighttts.broker.live import Part
from lighttts.broker.requests import Request, State
from lighttts.broker.workers import Worker
from lighttts.errors import InternalError
from lighttts.transport.wire import (
    STAGES,
    Abort,
    Accepted,
    CheckWork,
    Convert,
    ConvertWork,
    DecodeWork,
    Encoded,
    EncodeWork,
    GenerateWork,
    Message,
    MoreText,
    StageWork,
    Synth,
    TextWork,
    encode,
    readdress,
)

_AT_WORK = {"encode": State.ENCODING, "llm": State.GENERATING}
"""The state a request enters with a stage; decoding begins while the llm still generates."""

ABORTS_REMEMBERED = 10_000


class Dispatcher:
    """Stage queues, and handing requests to workers against credit."""

    def __init__(self, board: Board) -> None:
        self._step = board.step
        self._workers = board.workers
        self._queues: dict[str, dict[str, dict[str, Request]]] = {stage: {} for stage in STAGES}
        """What waits for a stage, in one queue for each style of its workers: none holds another up."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker, over all stages."""
        return sum(len(queue) for queues in self._queues.values() for queue in queues.values())

    def enter(self, stage: str, request: Request, now: float, *, first: bool = False) -> None:
        """Puts `request` at the end of a stage's queue, or `first` in it, and dispatches what can be."""
        queues = self._queues[stage]
        lane = self._workers.lane(stage, request.style(stage))
        if first:
            queues[lane] = {request.id: request, **queues.get(lane, {})}
        else:
            queues.setdefault(lane, {})[request.id] = request
        self._run(stage, queues[lane], now)

    def _waits(self, stage: str, request: Request) -> bool:
        return any(request.id in queue for queue in self._queues[stage].values())

    def concerned(self, stage: str, request: Request) -> bool:
        """Whether `stage` has something of `request` to do, or is doing it."""
        return self._waits(stage, request) or stage in request.holders

    def onward(self, request: Request, now: float) -> None:
        """Puts an encoded request into the queues of the stages that have a part of it to do."""
        if len(request.log) and "decode" in request.stages:
            self.enter("decode", request, now)
        if request.generated:
            self.all_generated(request, now)
        else:
            self.enter("llm", request, now)

    def all_generated(self, request: Request, now: float) -> None:
        """Notes that nothing of `request` is left but to decode."""
        request.move(State.DECODING, now)
        self._step.add(SaveState(request.id, request.state.value))

    def withdraw(self, request: Request) -> None:
        """Takes `request` out of every queue, and tells each worker that has it to drop it."""
        for queues in self._queues.values():
            for queue in queues.values():
                queue.pop(request.id, None)
        for stage, worker in request.holders.items():
            del worker.active[request.id]
            self.abort(worker, request.id, request.attempts[stage])
        request.holders.clear()

    def abort(self, worker: Worker, request_id: str, attempt: int) -> None:
        """Tells `worker` to drop a request."""
        if len(worker.aborted) >= ABORTS_REMEMBERED:
            worker.aborted.clear()
        worker.aborted.add(request_id)
        self.send(worker, Abort(request_id, attempt))

    def release(self, stage: str, request: Request) -> None:
        """Notes that `stage` has done its part of `request`."""
        del request.holders.pop(stage).active[request.id]

    def run(self, stage: str, now: float) -> None:
        """Hands out as many waiting requests of `stage` as there is credit for."""
        for queue in tuple(self._queues[stage].values()):
            self._run(stage, queue, now)

    def _run(self, stage: str, queue: dict[str, Request], now: float) -> None:
        for request in tuple(queue.values()) if queue else ():
            worker = self._workers.choose(stage, request, now)
            if worker:
                del queue[request.id]
                self._hand(stage, request, worker, now)
            elif not request.particular(stage):
                return

    def _hand(self, stage: str, request: Request, worker: Worker, now: float) -> None:
        if request.suspect(stage):
            others = worker.suspects()
            for suspect in (request, *others):
                suspect.isolated.discard(stage)
            if not others:
                request.isolated.add(stage)
        worker.breaker.allow(now)
        worker.credit -= 1
        worker.active[request.id] = request
        worker.aborted.discard(request.id)
        worker.moved = max(worker.moved, now)
        request.holders[stage] = worker
        request.started.setdefault(stage, now)
        self._begin(stage, request, worker, now)

    def _begin(self, stage: str, request: Request, worker: Worker, now: float) -> None:
        text = stage == "encode" and request.encoded is not None
        if stage in _AT_WORK and request.state is not _AT_WORK[stage] and not text:
            request.move(_AT_WORK[stage], now)
            if not request.told:
                self._step.add(SaveState(request.id, request.state.value))
        self.accept(request)
        self.send(worker, work(stage, request))
        for part in request.live.parts() if stage == "llm" and request.live else ():
            self.send(worker, self.more_text(request, part))
        for frames in request.log.since(request.flow.sentence) if stage == "decode" else ():
            worker.outbox.add(readdress(frames, request.attempts[stage]))

    def more_text(self, request: Request, part: Part) -> MoreText:
        """Ids of a text that comes in pieces, for the llm worker that has it."""
        return MoreText(request.id, request.attempts["llm"], *part)

    def blame(self, worker: Worker, now: float) -> None:
        """Counts a failure of `worker`; after a few in a row it is avoided."""
        trusted = worker.breaker.state is BreakerState.CLOSED
        worker.breaker.failed(now)
        self._step.observe(Metric.WORKER_FAILURES, label=worker.stage)
        if trusted and worker.breaker.state is BreakerState.OPEN:
            self._step.log("warning", "worker avoided", worker=worker.name, stage=worker.stage)

    def accept(self, request: Request) -> None:
        """Sends `Accepted`, as soon as some worker has said what the sample rate is."""
        if not request.accepted and self._workers.sample_rate and not request.told:
            request.accepted = True
            request.outbox.add(encode(Accepted(request.id, self._workers.sample_rate)))
            self._step.add(request.outbox)

    def send(self, worker: Worker, message: Message) -> None:
        """Queues a message for `worker`."""
        worker.outbox.add(encode(message))
        self._step.add(worker.outbox)

    def missing_stage(self, request: Request, now: float, patience: float) -> str | None:
        """A stage that `request` waits for, or has yet to enter, and no worker that could do its part has served for
        `patience` seconds of its life."""
        for stage in request.stages:
            absent = self._workers.absent_since(stage, request.version(stage), request.style(stage))
            needed = stage not in request.started or self._waits(stage, request)
            if absent is not None and needed and now - max(absent, request.received) >= patience:
                return stage
        return None


def work(stage: str, request: Request) -> StageWork:
    """The message that hands `stage` of `request` to a worker."""
    if stage == "encode":
        return _encode_work(request)
    if request.encoded is None:
        raise InternalError(f"request {request.id} comes to stage {stage} before it is encoded")
    return (_generate_work if stage == "llm" else _decode_work)(request, request.encoded)


def _encode_work(request: Request) -> EncodeWork | ConvertWork | CheckWork | TextWork:
    asked, attempt = request.asked, request.attempts["encode"]
    if request.told and isinstance(asked, Synth):
        return CheckWork(request.id, attempt, asked.prompt, asked.prompt_text)
    if isinstance(asked, Convert):
        return ConvertWork(request.id, attempt, asked.voice, asked.prompt, asked.source)
    if request.live and request.encoded:
        text, flush = request.live.work()
        return TextWork(request.id, attempt, request.live.method, flush, text)
    return EncodeWork(
        request.id,
        attempt,
        asked.text,
        asked.voice,
        asked.prompt_text,
        asked.prompt,
        asked.instruct,
        asked.pieces,
    )


def _generate_work(request: Request, encoded: Encoded) -> GenerateWork:
    return GenerateWork(
        request.id,
        request.attempts["llm"],
        request.asked.seed,
        request.log.sentence,
        len(request.log),
        encoded.lengths,
        encoded.text_ids,
        encoded.prompt_text_ids,
        encoded.llm_prompt_tokens,
        request.log.unfinished(),
        encoded.pieces,
        encoded.lead,
    )


def _decode_work(request: Request, encoded: Encoded) -> DecodeWork:
    asked, flow = request.asked, request.flow
    tokens_seq, tokens = request.log.before(flow.sentence)
    return DecodeWork(
        request.id,
        request.attempts["decode"],
        asked.seed,
        asked.speed,
        asked.output,
        asked.sample_type,
        flow.sentence,
        tokens_seq,
        tokens,
        flow.frames,
        flow.rows_before,
        flow.rows - flow.rows_before,
        encoded.voice_key,
        encoded.voice_tokens,
        encoded.voice_mel,
        encoded.voice_embedding,
        isinstance(asked, Convert),
    )
