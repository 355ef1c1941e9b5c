"""Whatever requests, results, cancels, deaths and delays come in whatever order, the core keeps its promises.

A client sees each frame once and in order, against credit it gave, then exactly one last word. A worker gets no more
work than it granted. No request is lost: each is stored, queued, held by a worker, or waits for its client. In the end
nothing is left of any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lighttts.broker.requests import State
from lighttts.errors import Unavailable
from lighttts.transport import wire
from lighttts.transport.wire import STAGES, Message
from tests.broker.harness import Harness, audio, encoded, mel, synth, tokens

TOKEN_FRAMES = 2
MEDIA_FRAMES = 3
CLIENTS = (b"c0", b"c1")
DEADLINE_S = 30.0


@dataclass
class Job:
    """A request in a worker's hands: how many frames it has made, whether all its input is there."""

    work: Message
    made: int = 0
    complete: bool = False


@dataclass
class FakeWorker:
    """What a worker knows; `granted` is credit given and not used up by work."""

    identity: bytes
    stage: str
    epoch: int
    granted: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    results: deque[Message] = field(default_factory=deque)
    alive: bool = True
    ready: bool = True


@dataclass
class FakeRequest:
    """What a client knows of one request."""

    client: bytes
    credit: int
    frames: int = 0
    last_word: Message | None = None
    gone: bool = False


class Broker(RuleBasedStateMachine):
    """The world around a core."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(
            durable=True, deadline_s=DEADLINE_S, no_worker_s=8.0, expiry_s=3.0, max_requests=6, max_credit=1000
        )
        self.workers: dict[bytes, FakeWorker] = {}
        self.requests: dict[str, FakeRequest] = {}
        self.boots = 0

    @initialize(credit=st.integers(1, 3))
    def boot_one_of_each(self, credit: int) -> None:
        for stage in STAGES:
            self.boot(stage, credit)

    @rule(seed=st.integers(0, 1 << 16), steps=st.integers(1, 40))
    def go_on(self, seed: int, steps: int) -> None:
        """Things take their usual course for a while, in an order that `seed` decides."""
        random = Random(seed)
        for _ in range(steps):
            busy = [(worker, id_) for worker in self.workers.values() if worker.alive for id_ in worker.jobs]
            senders = [worker for worker in self.workers.values() if worker.results]
            todo: list[Callable[[], None]] = [
                *(partial(self.harness.stored, request_id) for request_id in self.harness.unanswered),
                *(partial(self._advance, worker, request_id) for worker, request_id in busy),
                *(partial(self._push, worker) for worker in senders),
            ]
            if todo:
                random.choice(todo)()
            self.read_mail()

    # ---- clients -------------------------------------------------------------------------------------------------

    @rule(client=st.sampled_from(CLIENTS), output=st.sampled_from(wire.OUTPUTS), credit=st.integers(0, 3))
    def ask(self, client: bytes, output: str, credit: int) -> None:
        request_id = f"r{len(self.requests)}"
        self.requests[request_id] = request = FakeRequest(client, credit)
        self.harness.gone.discard(client)
        self._say(request, synth(request_id, output=output, credit=credit))

    @rule(data=st.data(), frames=st.integers(1, 3))
    def give_credit(self, data: st.DataObject, frames: int) -> None:
        if open_ := [(id_, r) for id_, r in self.requests.items() if not r.last_word and not r.gone]:
            request_id, request = data.draw(st.sampled_from(open_))
            request.credit += frames
            self._say(request, wire.Credit(request_id, frames))

    def _cancel(self, data: st.DataObject) -> None:
        if known := [(id_, r) for id_, r in self.requests.items() if not r.gone]:
            request_id, request = data.draw(st.sampled_from(known))
            acknowledged = request_id not in self.harness.core._board.requests
            if not acknowledged:
                self._say(request, wire.Cancel(request_id))

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if ended := [(id_, r) for id_, r in self.requests.items() if r.last_word and not r.gone]:
            request_id, request = data.draw(st.sampled_from(ended))
            self._say(request, wire.EndAck(request_id))

    def _vanish(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(CLIENTS))
        self.harness.gone.add(client)
        for request in self.requests.values():
            request.gone = request.gone or request.client == client
        self.harness.carry_out(self.harness.core.tick(self.harness.now))

    @rule(peer=st.sampled_from(CLIENTS), frames=st.lists(st.binary(max_size=8), max_size=3))
    def talk_nonsense(self, peer: bytes, frames: list[bytes]) -> None:
        for hear in (self.harness.core.client_message, self.harness.core.worker_message):
            self.harness.carry_out(hear(peer + b"?", frames, self.harness.now))
        self.harness.carry_out(self.harness.core.result(frames, self.harness.now))

    def _say(self, request: FakeRequest, message: Message) -> None:
        core, now = self.harness.core, self.harness.now
        frames = [bytes(frame) for frame in wire.encode(message)]
        self.harness.carry_out(core.client_message(request.client, frames, now))

    # ---- the store -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.harness.unanswered)
    @rule(data=st.data(), safe=st.sampled_from([True, True, True, False]))
    def store_answers(self, data: st.DataObject, safe: bool) -> None:
        request_id = data.draw(st.sampled_from(self.harness.unanswered))
        self.harness.stored(request_id, None if safe else Unavailable("down"))

    # ---- workers -------------------------------------------------------------------------------------------------

    @rule(stage=st.sampled_from(STAGES), credit=st.integers(0, 3))
    def boot(self, stage: str, credit: int) -> None:
        if sum(worker.alive for worker in self.workers.values()) < 6:
            self.boots += 1
            identity = f"{stage}-{self.boots}".encode()
            self.workers[identity] = FakeWorker(identity, stage, self.boots)
            self._register(self.workers[identity], credit)

    def _register_again(self, data: st.DataObject) -> None:
        if worker := self._some(data, ready=True):
            worker.jobs.clear()
            self._register(worker, data.draw(st.integers(0, 2)))

    def _register(self, worker: FakeWorker, credit: int) -> None:
        worker.granted = 0
        hello = wire.Register(f"w{worker.epoch}", worker.epoch, worker.stage, "", "", 24000, ("anna",))
        self._control(worker, hello)
        self._grant(worker, credit)

    @rule(data=st.data(), credit=st.integers(1, 3))
    def grant(self, data: st.DataObject, credit: int) -> None:
        if worker := self._some(data, ready=True):
            self._grant(worker, credit)

    def _grant(self, worker: FakeWorker, credit: int) -> None:
        worker.granted += credit
        self._control(worker, wire.Grant(worker.epoch, credit))

    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        worker = self._some(data)
        if worker and worker.jobs:
            request_id = data.draw(st.sampled_from(sorted(worker.jobs)))
            self._advance(worker, request_id)

    @rule(data=st.data())
    def results_arrive(self, data: st.DataObject) -> None:
        if senders := [worker for worker in self.workers.values() if worker.results]:
            self._push(data.draw(st.sampled_from(senders)))

    def _push(self, worker: FakeWorker) -> None:
        self.harness.result(worker.results.popleft())

    def _repeat_a_result(self, data: st.DataObject) -> None:
        if senders := [worker for worker in self.workers.values() if worker.results]:
            worker = data.draw(st.sampled_from(senders))
            worker.results.appendleft(worker.results[0])

    def _fail_a_job(self, data: st.DataObject) -> None:
        worker = self._some(data)
        if worker and worker.jobs:
            request_id = data.draw(st.sampled_from(sorted(worker.jobs)))
            del worker.jobs[request_id]
            worker.results.append(wire.StageFailed(request_id, 0, worker.epoch, "internal", "broke", "", False))

    def _drain(self, data: st.DataObject) -> None:
        if worker := self._some(data, ready=True):
            worker.ready = False
            self._control(worker, wire.Drain(worker.epoch))

    def _leave(self, data: st.DataObject) -> None:
        if worker := self._some(data):
            worker.alive = worker.ready = False
            self._control(worker, wire.Bye(worker.epoch))

    def _die(self, data: st.DataObject) -> None:
        if worker := self._some(data):
            worker.alive = worker.ready = False
            if data.draw(st.booleans()):
                self.harness.gone.add(worker.identity)

    def _control(self, worker: FakeWorker, message: Message) -> None:
        frames = [bytes(frame) for frame in wire.encode(message)]
        self.harness.carry_out(self.harness.core.worker_message(worker.identity, frames, self.harness.now))

    def _some(self, data: st.DataObject, *, ready: bool = False) -> FakeWorker | None:
        some = [worker for worker in self.workers.values() if worker.alive and (worker.ready or not ready)]
        return data.draw(st.sampled_from(some)) if some else None

    def _advance(self, worker: FakeWorker, request_id: str) -> None:
        job, epoch = worker.jobs[request_id], worker.epoch
        if worker.stage == "encode":
            worker.results.append(encoded(request_id, epoch))
            last = True
        elif worker.stage == "llm":
            last = job.made == TOKEN_FRAMES - 1
            worker.results.append(tokens(request_id, epoch, job.made, last=last))
        else:
            last = job.made == MEDIA_FRAMES - 1
            if last and not job.complete:
                return
            make = audio if isinstance(job.work, wire.DecodeWork) and job.work.output == "audio" else mel
            worker.results.append(make(request_id, epoch, job.made, last=last))
        job.made += 1
        if last:
            del worker.jobs[request_id]
            if worker.ready:
                self._grant(worker, 1)

    # ---- network and time ----------------------------------------------------------------------------------------

    def _block(self, data: st.DataObject) -> None:
        self.harness.full.add(data.draw(st.sampled_from([*CLIENTS, *self.workers])))

    @rule()
    def unblock(self) -> None:
        self.harness.full.clear()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0]))
    def wait(self, seconds: float) -> None:
        for worker in self.workers.values():
            if worker.alive:
                self._control(worker, wire.Heartbeat(worker.epoch, len(worker.jobs), 0, 0))
        self.harness.tick(seconds)

    @rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        """One of the things that go wrong."""
        troubles = [
            self._cancel,
            self._vanish,
            self._register_again,
            self._repeat_a_result,
            self._fail_a_job,
            self._drain,
            self._leave,
            self._die,
            self._block,
        ]
        data.draw(st.sampled_from(troubles))(data)

    # ---- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def read_mail(self) -> None:
        """Everybody reads, and checks what it reads."""
        for worker in self.workers.values():
            for message in self.harness.take(worker.identity):
                self._worker_reads(worker, message)
        for client in CLIENTS:
            for message in self.harness.take(client):
                self._client_reads(client, message)

    def _worker_reads(self, worker: FakeWorker, message: Message) -> None:
        if isinstance(message, wire.EncodeWork | wire.GenerateWork | wire.DecodeWork):
            worker.granted -= 1
            assert worker.granted >= 0, "more work than granted"
            assert worker.stage == {"E": "encode", "G": "llm", "D": "decode"}[type(message).__name__[0]]
            worker.jobs[message.request_id] = Job(message)
        elif isinstance(message, wire.Tokens):
            if message.request_id in worker.jobs:
                worker.jobs[message.request_id].complete |= message.last
        elif isinstance(message, wire.Abort):
            worker.jobs.pop(message.request_id, None)
        elif isinstance(message, wire.Alive) and not message.known and worker.ready and worker.alive:
            worker.jobs.clear()
            self._register(worker, 1)

    def _client_reads(self, client: bytes, message: Message) -> None:
        if isinstance(message, wire.Welcome):
            return
        request = self.requests[message.request_id]  # type: ignore[attr-defined]
        assert request.client == client
        if request.last_word:
            assert message == request.last_word, "something after the last word"
        elif isinstance(message, wire.Tokens | wire.Mel | wire.Audio):
            assert message.seq == request.frames, "a frame lost or repeated"
            request.frames += 1
            assert request.frames <= request.credit, "a frame without credit"
        elif isinstance(message, wire.End):
            assert message.frames == request.frames
            request.last_word = message
        elif isinstance(message, wire.Error):
            request.last_word = message
        else:
            assert isinstance(message, wire.Accepted)

    @invariant()
    def nothing_is_lost(self) -> None:
        core, board = self.harness.core, self.harness.core._board
        queued = {request_id for queue in core._dispatcher._queues.values() for request_id in queue}
        assert queued <= board.requests.live.keys()
        for request_id, request in board.requests.live.items():
            waits_for_store = request.state is State.RECEIVED and request_id in self.harness.unanswered
            waits_for_client = request.state is State.FLUSHING and not request.outbox.covered()
            assert waits_for_store or request_id in queued or request.holders or waits_for_client
        for worker in board.workers:
            assert worker.credit >= 0
            for request_id in worker.active:
                assert board.requests.live[request_id].holders[worker.stage] is worker
        known = {id_ for requests in board.requests.clients.values() for id_ in requests}
        assert known == {*board.requests.live, *board.requests.closing}
        assert {*self.harness.store.requests} <= known

    def teardown(self) -> None:
        """In the end every client that is there has its last word, and nothing is left."""
        self.harness.full.clear()
        for _ in range(round(2 * DEADLINE_S)):
            self.wait(1.0)
            self.read_mail()
            self.nothing_is_lost()
            for request_id, request in self.requests.items():
                if request.last_word and not request.gone:
                    self._say(request, wire.EndAck(request_id))
        assert all(request.last_word or request.gone for request in self.requests.values())
        assert self.harness.free


TestBroker = Broker.TestCase
TestBroker.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
