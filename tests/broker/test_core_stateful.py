"""Whatever messages, results, deaths, silences, hangs, duplicates and delays come in whatever order, the core keeps its
promises.

A client hears each sample once and in order, against credit it gave, then exactly one last word: `End` after the whole,
or an error for which there was a reason. Whoever goes on with another worker's work is given exactly what was done. A
worker gets no more work than it granted. No request is lost: each is stored, queued, held by a worker, or waits for its
client, until its deadline at the latest. So it is when connections of clients break and when the broker dies: clients
come back, to it or to the next one, and go on. In the end nothing is left of any of them.

    python -m tests.broker.test_core_stateful --steps 100000        # the long form
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lighttts.broker.endings import MOST
from lighttts.broker.instructions import Fetch
from lighttts.broker.outbox import Channel
from lighttts.broker.requests import State
from lighttts.broker.voice_records import VoiceRecord, digest_of
from lighttts.errors import Unavailable
from lighttts.transport import wire
from lighttts.transport.wire import STAGES, Message
from tests.broker.actors import FakeRequest, FakeWorker, Pick, Speech
from tests.broker.harness import convert, raw, synth
from tests.broker.mortal import MortalHarness
from tests.broker.shelf import ROOM

CLIENTS = ("c0", "c1")
MOST_REQUESTS = 6
MOST_CREDIT = 256
DEADLINE_S = 30.0
RECORDING = b"RIFF of a registered voice"
REGISTERED = VoiceRecord("", "mine", "What I say.", False, 0.0, len(RECORDING), digest_of(RECORDING), "key")
"""A voice that requests name as well as the preset one; its store answers whenever it comes to that."""
MOST_WORKERS = 8
RUN = 10
RUNS = 100
SUBSTEPS = 100
USUAL = 0.8
"""Share of steps that take the usual course."""
T = TypeVar("T")
Action = Callable[[Pick], None]


class Broker(RuleBasedStateMachine):
    """The world around a core. `taken`: steps of all runs so far."""

    taken = 0

    def __init__(self) -> None:
        super().__init__()
        self.harness = MortalHarness(
            deadline_s=DEADLINE_S, no_worker_s=8.0, expiry_s=3.0, stall_s=3.0, max_requests=MOST_REQUESTS
        )
        self.harness.voices_answer = False
        self.harness.shelf.put(REGISTERED, RECORDING, ROOM, over=False)
        self.connections: dict[str, bytes] = {}
        """The routing id of each client that has a connection."""
        self.broken: list[bytes] = []
        """Routing ids whose connection broke, which the broker has not noticed."""
        self.connected = self.logged = 0
        self.workers: dict[bytes, FakeWorker] = {}
        self.requests: dict[str, FakeRequest] = {}
        self.boots = 0
        self.missed = False
        """Some worker has not always been there."""

    @initialize(credit=st.integers(1, 3))
    def boot_two_of_each(self, credit: int) -> None:
        for stage in STAGES * 2:
            self.boot(stage, credit)

    @rule(data=st.data())
    def one_thing_happens(self, data: st.DataObject) -> None:
        def pick(choices: Sequence[T]) -> T:
            return data.draw(st.sampled_from(choices))

        pick([*self._course(), *self._events()])(pick)

    @rule(seed=st.integers(0, 1 << 32), steps=st.integers(1, SUBSTEPS))
    def much_happens(self, seed: int, steps: int) -> None:
        """Things take their usual course, with an event now and then, in an order that `seed` decides."""
        random = Random(seed)
        for _ in range(steps):
            course, events = self._course(), self._events()
            Broker.taken += 1
            random.choice(course if course and random.random() < USUAL else events)(random.choice)
            self.read_mail()
            self.nothing_is_lost()

    def _course(self) -> list[Action]:
        """What happens by itself. Results of the dead, the silent and the replaced arrive too, at any time later."""
        return [
            *(partial(self._stored, request_id) for request_id in self.harness.unanswered),
            *(partial(self._fetched, fetch) for fetch in self.harness.fetches),
            *([self._catch_up] if self.harness.store.late else []),
            *([self._voices_answer] if self.harness.questions else []),
            *(
                partial(self._advance, worker, request_id)
                for worker in self.workers.values()
                if worker.working
                for request_id in worker.jobs
            ),
            *(partial(self._push, worker) for worker in self.workers.values() if worker.results),
            *(partial(self._write, request) for request in self._heard_of() if request.writing),
        ]

    def _events(self) -> list[Action]:
        usual = [self._ask, self._give_credit, self._acknowledge, self._boot, self._grant_more, self._wait, self._wake]
        usual += [self._come_back] * 2
        troubles = [
            self._cancel,
            self._vanish,
            *[self._break_connection] * 2,
            self._notice,
            self._crash,
            *[self._register_again] * 3,
            self._repeat_a_result,
            self._fail_a_job,
            self._drain,
            self._leave,
            self._die,
            self._fall_silent,
            self._hang,
            self._block,
            self._unblock,
            self._talk_nonsense,
        ]
        return [*usual * 3, *troubles, self._lose_a_busy_worker]

    # ---- clients -------------------------------------------------------------------------------------------------

    def _ask(self, pick: Pick) -> None:
        client, credit, converts = pick(CLIENTS), pick(range(21)), pick([False, False, True])
        live = not converts and pick([True, False])
        output = pick(wire.DECODED if converts else wire.OUTPUTS)
        self._connect(client, pick)
        lengths = tuple(pick(range(1, 5)) for _ in range(1 if converts else pick(range(1, 4))))
        request = FakeRequest(
            f"r{len(self.requests)}", client, output, (*lengths, 0) if live else lengths, credit, self.harness.now, live
        )
        # A worker that is dead already takes what it is sent with it, until the broker notices.
        request.losses = {worker.loss for worker in self.workers.values() if not worker.working}
        self.requests[request.id] = request
        voice = pick(["anna", REGISTERED.name])
        text = {"text": "", "pieces": "auto"} if live else {}
        asked = (convert if converts else synth)(request.id, output=output, credit=credit, voice=voice, **text)
        self._say(request, asked)
        # Refused at once: if the connection breaks before that is heard, the broker knows nothing of it.
        request.forgotten = request.id not in self.harness.core._board.requests

    def _write(self, request: FakeRequest, pick: Pick) -> None:
        """A client says more of a text in pieces."""
        self._say(request, request.say(pick(range(1, 4))))

    def _give_credit(self, pick: Pick) -> None:
        if open_ := [request for request in self._heard_of() if not request.last_word]:
            request, frames = pick(open_), pick(range(1, 21))
            request.credit += frames
            self._say(request, wire.Credit(request.id, frames))

    def _cancel(self, pick: Pick) -> None:
        if open_ := [request for request in self._heard_of() if not request.last_word]:
            request = pick(open_)
            request.cancelled = True
            self._say(request, wire.Cancel(request.id))

    def _acknowledge(self, pick: Pick) -> None:
        if ended := [request for request in self._heard_of() if request.last_word]:
            request = pick(ended)
            self._say(request, wire.EndAck(request.id))

    def _heard_of(self) -> list[FakeRequest]:
        """The requests whose client is there and has a connection."""
        return [
            request for request in self.requests.values() if not request.gone and request.client in self.connections
        ]

    def _vanish(self, pick: Pick) -> None:
        client = pick(CLIENTS)
        self._disconnect(client)
        for request in self.requests.values():
            request.gone = request.gone or request.client == client
        self._notice(pick)
        self.harness.carry_out(self.harness.core.tick(self.harness.now))

    def _break_connection(self, pick: Pick) -> None:
        self._disconnect(pick(CLIENTS))

    def _disconnect(self, client: str) -> None:
        """Nothing more comes to the client there. What it had cancelled it does not care about any longer."""
        if identity := self.connections.pop(client, None):
            self.broken.append(identity)
        for request in self.requests.values():
            if request.client == client and not request.last_word:
                request.severed = self.harness.now
                # Text in pieces is not gone on with.
                request.gone = request.gone or request.cancelled or request.live

    def _notice(self, pick: Pick) -> None:
        """What is sent to lost connections shows from now on that nobody is there."""
        self.harness.gone.update(self.broken)
        self.broken.clear()

    def _come_back(self, pick: Pick) -> None:
        self._connect(pick(CLIENTS), pick)

    def _connect(self, client: str, pick: Pick) -> None:
        """The client has a connection, if need be a new one, and goes on with what it had asked for."""
        if client in self.connections:
            return
        self.connected += 1
        self.connections[client] = f"{client}#{self.connected}".encode()
        for request in self._heard_of():
            if request.client == client and not request.last_word:
                self._say(request, request.resume(pick(range(21))))

    def _talk_nonsense(self, pick: Pick) -> None:
        peer, frames = b"nobody", [bytes(pick(range(256)) for _ in range(pick(range(8))))] * pick(range(4))
        for hear in (self.harness.core.client_message, self.harness.core.worker_message):
            self.harness.carry_out(hear(peer, frames, self.harness.now))
        self.harness.carry_out(self.harness.core.result(frames, self.harness.now))

    def _say(self, request: FakeRequest, message: Message) -> None:
        core, now = self.harness.core, self.harness.now
        self.harness.carry_out(core.client_message(self.connections[request.client], raw(message), now))

    # ---- the broker and its store --------------------------------------------------------------------------------

    def _crash(self, pick: Pick) -> None:
        """The broker dies, with all that its store has not come to; every connection breaks."""
        unstored, holed = self.harness.restart()
        for client in CLIENTS:
            self._disconnect(client)
        self.broken.clear()
        for request in self.requests.values():
            request.forgotten |= request.id in unstored or (request.output == "tokens" and request.id in holed)
        for worker in self.workers.values():
            worker.lose_broker()
        self.missed = True

    def _catch_up(self, pick: Pick) -> None:
        self.harness.store.catch_up()

    def _voices_answer(self, pick: Pick) -> None:
        self.harness.answer_voices()

    def _fetched(self, fetch: Fetch, pick: Pick) -> None:
        self.harness.fetches.remove(fetch)
        self.harness.fetch(fetch.request_id)

    def _stored(self, request_id: str, pick: Pick) -> None:
        self.harness.store.catch_up()
        safe = pick([True] * 9 + [False])
        self.requests[request_id].refused_by_store = not safe
        self.harness.stored(request_id, None if safe else Unavailable("down"))

    # ---- workers -------------------------------------------------------------------------------------------------

    def _boot(self, pick: Pick) -> None:
        if sum(worker.alive for worker in self.workers.values()) < MOST_WORKERS:
            self.boot(pick(STAGES), pick(range(4)))

    def boot(self, stage: str, credit: int) -> None:
        """A new worker."""
        self.boots += 1
        identity = f"{stage}-{self.boots}".encode()
        self.workers[identity] = FakeWorker(identity, stage, self.boots)
        self._register(self.workers[identity], credit)

    def _register(self, worker: FakeWorker, credit: int) -> None:
        if worker.registrations:
            self._lost(worker)
        worker.jobs.clear()
        worker.granted = 0
        worker.registrations += 1
        worker.joining += 1
        hello = wire.Register(f"w{worker.epoch}", worker.epoch, worker.stage, "", "", 24000, ("anna",))
        self._control(worker, hello)
        if not worker.hung:
            self._grant(worker, credit)

    def _grant_more(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: worker.ready and worker.working):
            self._grant(worker, pick(range(1, 4)))

    def _grant(self, worker: FakeWorker, credit: int) -> None:
        worker.granted += credit
        self._control(worker, wire.Grant(worker.epoch, credit))

    def _advance(self, worker: FakeWorker, request_id: str, pick: Pick) -> None:
        if worker.advance(request_id, pick) and worker.ready:
            self._grant(worker, 1)

    def _push(self, worker: FakeWorker, pick: Pick) -> None:
        self.harness.result(worker.results.popleft())

    def _some(self, pick: Pick, which: Callable[[FakeWorker], bool]) -> FakeWorker | None:
        some = [worker for worker in self.workers.values() if worker.alive and which(worker)]
        return pick(some) if some else None

    def _control(self, worker: FakeWorker, message: Message) -> None:
        self.harness.carry_out(self.harness.core.worker_message(worker.identity, raw(message), self.harness.now))

    # ---- what goes wrong with workers ----------------------------------------------------------------------------

    def _lost(self, worker: FakeWorker) -> None:
        """What the worker has, or is sent before the broker gives it up, may be lost with it."""
        self.missed = True
        for request in self.requests.values():
            if not request.last_word:
                request.losses.add(worker.loss)

    def _register_again(self, pick: Pick) -> None:
        """With the same epoch, as after a lost connection: results on their way belong to what it no longer does."""
        under_way = pick([True, True, False])
        if worker := self._some(pick, lambda w: w.ready and not w.silent and (bool(w.results) or not under_way)):
            self._register(worker, pick(range(1, 5)))

    def _repeat_a_result(self, pick: Pick) -> None:
        if senders := [worker for worker in self.workers.values() if worker.results]:
            worker = pick(senders)
            worker.results.appendleft(worker.results[0])
            self.requests[worker.results[0].request_id].spoiled = True  # type: ignore[attr-defined]

    def _fail_a_job(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: worker.working and bool(worker.jobs)):
            request = self.requests[pick(sorted(worker.jobs))]
            code = pick(["internal", "worker_failed"])
            job = worker.jobs.pop(request.id)
            if code == "internal":
                request.spoiled = True
            request.failures += code == "worker_failed"
            request.losses.add((worker.identity, -len(request.losses)))
            failure = wire.StageFailed(request.id, job.work.attempt, worker.epoch, code, "broke", "", False)
            worker.results.append(failure)

    def _drain(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: worker.ready and not worker.silent):
            worker.ready, self.missed = False, True
            self._control(worker, wire.Drain(worker.epoch))

    def _leave(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: not worker.silent):
            self._lost(worker)
            worker.alive = worker.ready = False
            self._control(worker, wire.Bye(worker.epoch))

    def _die(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: True):
            self._lost(worker)
            worker.alive = worker.ready = False
            if pick([True, False]):
                self.harness.gone.add(worker.identity)

    def _fall_silent(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: not worker.silent):
            self._lost(worker)
            worker.silent = True

    def _wake(self, pick: Pick) -> None:
        """A worker that was stopped goes on as if nothing had happened."""
        if worker := self._some(pick, lambda worker: worker.silent):
            worker.silent = False
            self._control(worker, wire.Heartbeat(worker.epoch, len(worker.jobs), 0, worker.progress))

    def _hang(self, pick: Pick) -> None:
        if worker := self._some(pick, lambda worker: worker.working):
            self._lost(worker)
            worker.hung = True

    # ---- network and time ----------------------------------------------------------------------------------------

    def _block(self, pick: Pick) -> None:
        self.harness.full.add(pick([*self.connections.values(), *self.workers]))

    def _unblock(self, pick: Pick) -> None:
        self.harness.full.clear()

    def _wait(self, pick: Pick) -> None:
        self.wait(pick([0.01, 0.3, 1.0]))

    def wait(self, seconds: float) -> None:
        """Time passes; whoever runs beats."""
        for worker in self.workers.values():
            if worker.alive and not worker.silent:
                worker.progress += not worker.hung
                self._control(worker, wire.Heartbeat(worker.epoch, len(worker.jobs), 0, worker.progress))
        self.harness.tick(seconds)
        self.harness.store.renew()

    def _lose_a_busy_worker(self, pick: Pick) -> None:
        """One that has begun and is not done: what is left of it goes on elsewhere."""
        if worker := self._some(pick, lambda worker: any(job.begun for job in worker.jobs.values())):
            self._lost(worker)
            worker.alive = worker.ready = False
            self.harness.gone.add(worker.identity)
            self.harness.carry_out(self.harness.core.gone(Channel.WORKERS, worker.identity, self.harness.now))
            self.boot(worker.stage, 3)

    # ---- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        self.read_mail()
        self.nothing_is_lost()

    def read_mail(self) -> None:
        """Everybody reads, and checks what it reads."""
        for worker in self.workers.values():
            if not worker.silent:
                for message in self.harness.take(worker.identity):
                    self._worker_reads(worker, message)
        self._read_log()
        for client, identity in self.connections.items():
            for message in self.harness.take(identity):
                if not isinstance(message, wire.Welcome):
                    request = self.requests[message.request_id]  # type: ignore[attr-defined]
                    assert request.client == client
                    request.read(message, self.harness.now, DEADLINE_S, self.missed)

    def _read_log(self) -> None:
        """What fails while its client has no connection may be forgotten before the client asks for it."""
        logs, self.logged = self.harness.logs[self.logged :], len(self.harness.logs)
        for log in logs:
            if log.event == "request closed" and log.fields["state"] != "ending":
                self.requests[str(log.fields["request_id"])].forgotten = True

    def _worker_reads(self, worker: FakeWorker, message: Message) -> None:
        if isinstance(message, wire.Registered):
            worker.joining -= 1
        elif worker.joining:
            # What crosses `Register` belongs to a registration that is void.
            return
        elif isinstance(message, wire.StageWork):
            worker.granted -= 1
            if isinstance(message, wire.EncodeWork | wire.ConvertWork):
                assert (message.voice, message.prompt) in (("anna", b""), ("", RECORDING)), "not a voice workers know"
            assert worker.granted >= 0, "more work than granted"
            stage = {"E": "encode", "C": "encode", "T": "encode", "G": "llm", "D": "decode"}
            assert worker.stage == stage[type(message).__name__[0]]
            worker.jobs[message.request_id] = Speech(message, self.requests[message.request_id].lengths)
        elif isinstance(message, wire.Tokens):
            if message.request_id in worker.jobs:
                worker.jobs[message.request_id].receive(message)
        elif isinstance(message, wire.MoreText):
            if message.request_id in worker.jobs:
                worker.jobs[message.request_id].write(message)
        elif isinstance(message, wire.Abort):
            job = worker.jobs.get(message.request_id)
            if job and job.work.attempt == message.attempt:
                del worker.jobs[message.request_id]
        elif isinstance(message, wire.Alive) and not message.known and worker.ready and worker.alive:
            self._register(worker, 1)

    def nothing_is_lost(self) -> None:
        core, board = self.harness.core, self.harness.core._board
        queued = {
            request_id
            for queues in core._dispatcher._queues.values()
            for queue in queues.values()
            for request_id in queue
        }
        assert queued <= board.requests.live.keys()
        for request_id, request in board.requests.live.items():
            waits_for_store = request.state is State.RECEIVED and request_id in self.harness.unanswered
            waits_for_client = request.state is State.FLUSHING and not request.outbox.covered()
            waits_for_text = request.state is State.ENCODED and request.live is not None and request.live.rests
            waits_for_voice = request.state is State.ADMITTED and bool(self.harness.questions)
            waits = waits_for_store or waits_for_client or waits_for_text or waits_for_voice
            assert waits or request_id in queued or request.holders
            assert self.harness.now <= request.deadline + 1.0
            assert request.outbox.credit >= 0
            fake = self.requests[request_id]
            if self.connections.get(fake.client) == request.client and fake.credit < MOST_CREDIT:
                assert request.outbox.credit == fake.credit - fake.frames, "credit was lost, or made"
        for worker in board.workers:
            assert worker.credit >= 0
            for request_id in worker.active:
                assert board.requests.live[request_id].holders[worker.stage] is worker
        known = {id_ for requests in board.requests.clients.values() for id_ in requests}
        assert known == {*board.requests.live, *board.requests.closing}
        store = self.harness.store
        ours = store.requests.keys() - store._parked.keys() - store.orphans
        assert ours ^ known <= {write.request_id for write in store.late}
        if len(board.requests.closing) == MOST * MOST_REQUESTS:
            # The next one to end takes the place of one of them.
            for request_id in board.requests.closing:
                self.requests[request_id].forgotten = True

    def teardown(self) -> None:
        """In the end every client that is there has its last word, and nothing is left."""
        self.harness.full.clear()
        # The deadline of a text in pieces counts from its last piece, and its last word is offered as long after that.
        for number in range(round(3 * DEADLINE_S)):
            random = Random(number)
            for client in CLIENTS:
                self._connect(client, random.choice)
            for _ in range(20):
                if course := self._course():
                    random.choice(course)(random.choice)
                self.read_mail()
            self.wait(1.0)
            self.read_mail()
            self.nothing_is_lost()
            for request in self._heard_of():
                if request.last_word:
                    self._say(request, wire.EndAck(request.id))
        assert all(request.last_word or request.gone for request in self.requests.values())
        self.harness.store.catch_up()
        self.harness.store.expire(*self.harness.store.orphans)
        assert self.harness.free


def _settings(runs: int) -> settings:
    return settings(
        max_examples=runs,
        stateful_step_count=RUN,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class TestBroker(Broker.TestCase):  # type: ignore[misc, valid-type, name-defined]
    settings = _settings(60)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Runs the model of clients and workers against the broker's core.")
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    taken = Broker.taken = 0
    while taken < steps:
        run_state_machine_as_test(Broker, settings=_settings(RUNS))
        taken = Broker.taken
        print(f"{taken} steps, no promise broken", flush=True)


if __name__ == "__main__":
    main()
