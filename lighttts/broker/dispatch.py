"""Who works on what: requests wait for each stage in order of arrival and go to the worker with most granted credit."""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.instructions import SaveState
from lighttts.broker.requests import Request, State
from lighttts.broker.workers import Worker
from lighttts.errors import InternalError
from lighttts.transport.wire import STAGES, Abort, Accepted, DecodeWork, EncodeWork, GenerateWork, Message, encode

_AT_WORK = {"encode": State.ENCODING, "llm": State.GENERATING}
"""The state a request enters with a stage; decoding begins while the llm still generates."""

ABORTS_REMEMBERED = 10_000


class Dispatcher:
    """Stage queues, and handing requests to workers against credit."""

    def __init__(self, board: Board) -> None:
        self._step = board.step
        self._workers = board.workers
        self._queues: dict[str, dict[str, Request]] = {stage: {} for stage in STAGES}

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker, over all stages."""
        return sum(map(len, self._queues.values()))

    def enter(self, stage: str, request: Request, now: float) -> None:
        """Puts `request` at the end of a stage's queue and dispatches what can be."""
        self._queues[stage][request.id] = request
        self.run(stage, now)

    def withdraw(self, request: Request) -> None:
        """Takes `request` out of every queue, and tells each worker that has it to drop it."""
        for queue in self._queues.values():
            queue.pop(request.id, None)
        for worker in request.holders.values():
            del worker.active[request.id]
            self.abort(worker, request.id, request.attempt)
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
        queue = self._queues[stage]
        while queue:
            worker = self._workers.choose(stage)
            if worker is None:
                return
            request = queue.pop(next(iter(queue)))
            worker.credit -= 1
            worker.active[request.id] = request
            worker.aborted.discard(request.id)
            request.holders[stage] = worker
            request.started[stage] = now
            self._begin(stage, request, worker, now)

    def _begin(self, stage: str, request: Request, worker: Worker, now: float) -> None:
        if stage in _AT_WORK:
            request.move(_AT_WORK[stage], now)
            self._step.add(SaveState(request.id, request.state.value))
        self.accept(request)
        self.send(worker, work(stage, request))
        for frames in request.undecoded if stage == "decode" else ():
            worker.outbox.add(frames)
        if stage == "decode":
            request.undecoded.clear()

    def accept(self, request: Request) -> None:
        """Sends `Accepted`, as soon as some worker has said what the sample rate is."""
        if not request.accepted and self._workers.sample_rate:
            request.accepted = True
            request.outbox.add(encode(Accepted(request.id, self._workers.sample_rate)))
            self._step.add(request.outbox)

    def send(self, worker: Worker, message: Message) -> None:
        """Queues a message for `worker`."""
        worker.outbox.add(encode(message))
        self._step.add(worker.outbox)

    def missing_stage(self, request: Request, now: float, patience: float) -> str | None:
        """A stage `request` has yet to enter that no worker has served for `patience` seconds of its life."""
        for stage in request.stages:
            absent = self._workers.absent_since(stage)
            if absent is not None and stage not in request.started and now - max(absent, request.received) >= patience:
                return stage
        return None


def work(stage: str, request: Request) -> Message:
    """The message that hands `stage` of `request` to a worker."""
    synth, encoded = request.synth, request.encoded
    if stage == "encode":
        return EncodeWork(request.id, request.attempt, synth.text, synth.voice, synth.prompt_text, synth.prompt)
    if encoded is None:
        raise InternalError(f"request {request.id} comes to stage {stage} before it is encoded")
    if stage == "llm":
        return GenerateWork(
            request.id,
            request.attempt,
            synth.seed,
            encoded.lengths,
            encoded.text_ids,
            encoded.prompt_text_ids,
            encoded.llm_prompt_tokens,
        )
    return DecodeWork(
        request.id,
        request.attempt,
        synth.seed,
        synth.speed,
        synth.output,
        synth.sample_type,
        encoded.voice_key,
        encoded.voice_tokens,
        encoded.voice_mel,
        encoded.voice_embedding,
    )
