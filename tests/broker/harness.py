"""Drives the broker's core without sockets: says what clients and workers say, carries out what the core answers."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from lighttts.broker.core import Core
from lighttts.broker.instructions import (
    DeleteRequest,
    Fetch,
    Instruction,
    Log,
    Metric,
    Observe,
    Reply,
    SaveRequest,
)
from lighttts.broker.outbox import Frames, Outbox
from lighttts.broker.quota import by_connection
from lighttts.broker.state import Claim, MemoryStore
from lighttts.broker.voice_questions import AskVoices
from lighttts.config import BrokerConfig
from lighttts.errors import LightTTSError
from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.shelf import Shelf, answer

SAMPLE_RATE = 24000
CLIENT = b"client"
SYNTH = wire.Synth(
    request_id="r1",
    text="Hello.",
    voice="anna",
    prompt_text="",
    seed=7,
    speed=1.0,
    output="audio",
    sample_type="f32",
    deadline_ms=0,
    credit=100,
    prompt=b"",
)
CONVERT = wire.Convert(
    request_id="r1",
    voice="anna",
    seed=7,
    speed=1.0,
    output="audio",
    sample_type="f32",
    deadline_ms=0,
    credit=100,
    prompt=b"",
    source=b"RIFF",
)
COUNTERS = (Metric.REQUESTS, Metric.FAILURES, Metric.UNDERRUNS, Metric.FRAMES, Metric.REFUSED)


def raw(message: Message, version: int = wire.VERSION) -> list[bytes]:
    """The frames of a message as a socket delivers them."""
    return [bytes(frame) for frame in wire.encode(message, version)]


def synth(request_id: str = "r1", **changes: object) -> wire.Synth:
    """A valid request."""
    return replace(SYNTH, request_id=request_id, **changes)  # type: ignore[arg-type]


def convert(request_id: str = "r1", **changes: object) -> wire.Convert:
    """A valid conversion."""
    return replace(CONVERT, request_id=request_id, **changes)  # type: ignore[arg-type]


def encoded(request_id: str, epoch: int, attempt: int = 0) -> wire.Encoded:
    """The encode stage's result: one sentence of three ids."""
    return wire.Encoded(
        request_id=request_id,
        attempt=attempt,
        epoch=epoch,
        lengths=(3,),
        voice_key="key",
        text_ids=np.array([1, 2, 3], np.int32),
        prompt_text_ids=np.array([], np.int32),
        llm_prompt_tokens=np.array([4], np.int32),
        voice_tokens=np.array([5, 6], np.int32),
        voice_mel=np.full((4, wire.MEL_BINS), 0.5, np.float32),
        voice_embedding=np.zeros(wire.EMBEDDING_SIZE, np.float32),
    )


def source(request_id: str, epoch: int, attempt: int = 0, *, count: int = 25) -> wire.Encoded:
    """The encode stage's result of a conversion."""
    none, ids = np.zeros(0, np.int32), np.arange(count, dtype=np.int32)
    text = {"lengths": (), "text_ids": none, "llm_prompt_tokens": none}
    return replace(encoded(request_id, epoch, attempt), **text, source_tokens=ids)  # type: ignore[arg-type]


def tokens(request_id: str, epoch: int, seq: int, *, last: bool = False, count: int = 25) -> wire.Tokens:
    """A frame of the llm stage."""
    ids = np.arange(count, dtype=np.int32) + seq
    return wire.Tokens(request_id, 0, epoch, seq, sentence=0, final=last, last=last, tokens=ids)


def audio(request_id: str, epoch: int, seq: int, *, last: bool = False, samples: int = 480) -> wire.Audio:
    """A frame of the decode stage, each sample of it equal to its sequence number."""
    return wire.Audio(
        request_id, 0, epoch, seq, 0, last, seq * samples, 25 * (seq + 1), np.full(samples, seq, np.float32)
    )


def mel(request_id: str, epoch: int, seq: int, *, last: bool = False, rows: int = 50) -> wire.Mel:
    """A mel frame of the decode stage."""
    return wire.Mel(request_id, 0, epoch, seq, 0, last, seq * rows, 25, np.full((rows, wire.MEL_BINS), seq, np.float32))


class Harness:
    """A core with what it needs around it. `now` is its clock; `full` and `gone` are peers that take no messages.

    `mail` holds what was sent to each peer, `counted` each (metric, label).
    """

    def __init__(
        self,
        *,
        durable: bool = False,
        wall: Callable[[], float] = time.time,
        who: Callable[[bytes], bytes] = by_connection,
        **settings: object,
    ) -> None:
        self.settings = BrokerConfig(**settings)  # type: ignore[arg-type]
        self.now = 1000.0
        about = {"name": "test", "store": "memory", "durable": durable}
        self.core = Core(self.settings, **about, now=self.now, who=who, wall=wall)  # type: ignore[arg-type]
        self.store = MemoryStore(lambda: self.now)
        self.durable = durable
        self.mail: dict[bytes, list[Frames]] = defaultdict(list)
        self.full: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.counted: Counter[tuple[Metric, str]] = Counter()
        self.observed: dict[Metric, list[float]] = defaultdict(list)
        self.logs: list[Log] = []
        self.unanswered: list[str] = []
        """Requests whose record the store has not confirmed."""
        self.deleted: list[str] = []
        self.fetches: list[Fetch] = []
        self.shelf = Shelf()
        self.questions: list[AskVoices] = []
        """What the store of voices has been asked and not answered: nothing while `voices_answer`."""
        self.voices_answer = True
        self.voices_trouble: LightTTSError | None = None

    # ---- events --------------------------------------------------------------------------------------------------

    def say(self, *messages: Message, client: bytes = CLIENT) -> list[Message]:
        """A client says something; returns what it has been sent since it was last asked."""
        for message in messages:
            self.carry_out(self.core.client_message(client, raw(message), self.now))
        return self.take(client)

    def control(self, worker: bytes, *messages: Message) -> list[Message]:
        """A worker says something; returns what it has been sent since it was last asked."""
        for message in messages:
            self.carry_out(self.core.worker_message(worker, raw(message), self.now))
        return self.take(worker)

    def result(self, *messages: Message) -> None:
        """A worker pushes results."""
        for message in messages:
            self.carry_out(self.core.result(raw(message), self.now))

    def stored(self, request_id: str, error: LightTTSError | None = None) -> None:
        """The store answers."""
        self.unanswered.remove(request_id)
        self.carry_out(self.core.stored(request_id, error, self.now))

    def fetch(self, request_id: str = "r1") -> None:
        """The store answers a `Fetch` from what it has been told."""
        claim = self.store.claim(request_id)
        found = self.store.requests[request_id] if claim is Claim.OURS else claim
        self.carry_out(self.core.fetched(request_id, found, self.now))

    def answer_voices(self) -> None:
        """The store of voices answers what it was asked."""
        self.carry_out(self._answer_voices())

    def _answer_voices(self) -> list[Instruction]:
        asked, self.questions = self.questions, []
        answers = [(number, self.voices_trouble or answer(self.shelf, question)) for number, question in asked]
        return [more for number, given in answers for more in self.core.voices_answered(number, given, self.now)]

    def tick(self, seconds: float = 0.1, *, alive: Iterable[tuple[bytes, int]] = ()) -> None:
        """Time passes; workers in `alive` (routing id, epoch) send a heartbeat first."""
        self.now += seconds
        for worker, epoch in alive:
            self.control(worker, wire.Heartbeat(epoch, 0, 0, round(1000 * self.now)))
        self.carry_out(self.core.tick(self.now))

    def pass_time(self, seconds: float, *, alive: Iterable[tuple[bytes, int]] = ()) -> None:
        """Time passes in small steps."""
        for _ in range(round(seconds / 0.5)):
            self.tick(0.5, alive=alive)

    # ---- a stack of workers ----------------------------------------------------------------------------------------

    def worker(
        self,
        stage: str,
        epoch: int,
        *,
        credit: int = 4,
        name: str = "",
        voices: tuple[str, ...] = ("anna",),
        version: int = wire.VERSION,
    ) -> bytes:
        """Registers a worker and grants its credit; returns its routing id."""
        identity = f"{stage}-{epoch}".encode()
        hello = wire.Register(name or f"{stage}-{epoch}", epoch, stage, "test", "model", SAMPLE_RATE, voices)
        for message in (hello, wire.Grant(epoch, credit)):
            self.carry_out(self.core.worker_message(identity, raw(message, version), self.now))
        self.take(identity)
        return identity

    def worker_with_work(self, stage: str, epoch: int, *, credit: int) -> WorkingWorker:
        """Registers a worker that keeps the work it is sent."""
        identity = f"{stage}-{epoch}".encode()
        hello = wire.Register(identity.decode(), epoch, stage, "test", "model", SAMPLE_RATE, ())
        self.carry_out(self.core.worker_message(identity, raw(hello), self.now))
        self.carry_out(self.core.worker_message(identity, raw(wire.Grant(epoch, credit)), self.now))
        worker = WorkingWorker(self, identity)
        worker.read()
        return worker

    def stack(self, credit: int = 4) -> None:
        """One worker of each stage, with epochs 1, 2 and 3."""
        for epoch, stage in enumerate(wire.STAGES, 1):
            self.worker(stage, epoch, credit=credit)

    # ---- what came of it -------------------------------------------------------------------------------------------

    def take(self, peer: bytes) -> list[Message]:
        """The messages sent to `peer` since this was last asked; but for `Ping`s, which come in any silence."""
        messages = [wire.decode(frames) for frames in self.mail.pop(peer, [])]
        return [message for message in messages if not isinstance(message, wire.Ping)]

    def carry_out(self, instructions: Iterable[Instruction]) -> None:
        """Does what the core says."""
        todo = deque(instructions)
        while todo:
            instruction = todo.popleft()
            match instruction:
                case Outbox():
                    todo.extend(self._flush(instruction))
                case Reply(channel, peer, frames):
                    if peer in self.gone:
                        todo.extend(self.core.gone(channel, peer, self.now))
                    elif peer in self.full:
                        self.core.unanswered(instruction)
                    else:
                        self.mail[peer].append(frames)
                case Observe(metric, value, label):
                    self.counted[metric, label] += int(value) if metric in COUNTERS else 1
                    self.observed[metric].append(value)
                case Fetch():
                    self.fetches.append(instruction)
                case AskVoices():
                    self.questions.append(instruction)
                    if self.voices_answer:
                        todo.extend(self._answer_voices())
                case Log():
                    self.logs.append(instruction)
                case _:
                    self._write(instruction)

    def _flush(self, outbox: Outbox) -> list[Instruction]:
        while (frames := outbox.ready()) is not None:
            if outbox.peer in self.gone:
                return self.core.gone(outbox.channel, outbox.peer, self.now)
            if outbox.peer in self.full:
                self.core.full(outbox)
                break
            self.mail[outbox.peer].append(frames)
            outbox.sent()
        return []

    def _write(self, write: Instruction) -> None:
        if isinstance(write, SaveRequest) and self.durable:
            self.unanswered.append(write.request_id)
        if isinstance(write, DeleteRequest):
            self.deleted.append(write.request_id)
        self.store.write(write)  # type: ignore[arg-type]

    @property
    def free(self) -> bool:
        """Whether nothing at all is left of any request, but the records of those whose client may come back."""
        board = self.core._board
        return (
            self.core.idle
            and not board.requests.clients
            and self.store.requests.keys() == self.store._parked.keys()
            and not board.prompts.used
            and not board.output.used
            and not self.core._dispatcher.waiting
            and not any(worker.active for worker in board.workers)
        )


class WorkingWorker:
    """`mine`: the requests the worker has, each with the attempt at it."""

    def __init__(self, harness: Harness, identity: bytes) -> None:
        self.harness = harness
        self.identity = identity
        self.mine: dict[str, int] = {}

    def read(self) -> None:
        """Takes in what the worker has been sent."""
        for message in self.harness.take(self.identity):
            if isinstance(message, wire.StageWork):
                self.mine[message.request_id] = message.attempt
