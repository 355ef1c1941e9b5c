"""One worker at several brokers: each gets all it can give, none notices what becomes of another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.security import Guard
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Delivery, Frames, Sockets
from lighttts.workers import base, connector, membership, seat
from lighttts.workers.compute import pack
from lighttts.workers.connector import Address
from lighttts.workers.outbox import Outbox
from lighttts.workers.stage import Result, Stage, Work
from tests.transport.keys import Keyring
from tests.workers.fakes import BOOT, FOR_EVER_MS, PATIENCE, FakeBroker, Running, ScriptedStage, running, until, work

LONG = 100_000
ELSEWHERE = Address("tcp://127.0.0.2:0", "tcp://127.0.0.2:0")
"""Where an attempt to connect cannot find itself while nobody listens: it comes from 127.0.0.1."""

Pair = tuple[FakeBroker, FakeBroker]


@pytest.fixture
def pair(stage: ScriptedStage) -> Iterator[Pair]:
    """Two brokers that one worker has joined."""
    brokers = FakeBroker(), FakeBroker()
    with running(stage, *(broker.address for broker in brokers)):
        assert [broker.joined().credit for broker in brokers] == [stage.capacity] * 2
        yield brokers


@pytest.fixture
def both(stage: ScriptedStage) -> Iterator[tuple[Running, FakeBroker, FakeBroker]]:
    """The same, with the worker."""
    brokers = FakeBroker(), FakeBroker()
    with running(stage, *(broker.address for broker in brokers)) as worker:
        for broker in brokers:
            broker.joined()
        yield worker, *brokers


def waits(broker: FakeBroker, requests: int) -> None:
    """Returns when so many wait for the engine."""
    until(lambda: broker.beat().waiting == requests)


def held(broker: FakeBroker, requests: int = 1) -> None:
    """Returns when the worker has so much work of this broker at least."""
    until(lambda: broker.beat().active >= requests)


def names(works: list[Work]) -> set[tuple[str, int]]:
    return {(work.request_id, work.seat) for work in works}


# ---- one for all ----


def test_each_broker_is_granted_the_whole_capacity_and_gets_its_own_results(stage: ScriptedStage, pair: Pair) -> None:
    one, other = pair
    for index in range(stage.capacity):
        one.send(work(f"one-{index}", frames=3))
        other.send(work(f"other-{index}", frames=5))
    for index in range(stage.capacity):
        assert [frame.seq for frame in one.stream(f"one-{index}")] == [*range(3)]
        assert [frame.seq for frame in other.stream(f"other-{index}")] == [*range(5)]
    for broker in pair:
        broker.regains(stage.capacity)
        broker.quiet()
    assert stage.most <= stage.capacity


def test_the_worker_is_the_same_boot_to_all(stage: ScriptedStage) -> None:
    brokers = FakeBroker(), FakeBroker()
    with running(stage, *(broker.address for broker in brokers)):
        hellos = [broker.registered() for broker in brokers]
    assert hellos[0] == hellos[1]


def test_the_same_request_and_attempt_of_two_brokers_stay_apart(stage: ScriptedStage, pair: Pair) -> None:
    one, other = pair
    stage.gate.clear()
    one.send(work("a", LONG))
    other.send(work("a", frames=4))
    one.beat()
    assert [broker.beat().active for broker in pair] == [1, 1]
    one.send(wire.Abort("a", 0))
    one.beat()
    stage.gate.set()
    assert [frame.seq for frame in other.stream("a")] == [*range(4)]
    for broker in pair:
        broker.regains(1)
        broker.quiet()
    assert names(stage.freed) == {("a", 0)}


def test_a_worker_is_ready_while_any_broker_has_it(stage: ScriptedStage, address: Address) -> None:
    broker = FakeBroker()
    with running(stage, broker.address, address) as worker:
        assert worker.worker.health() == (False, "waiting for the broker (2 of 2 brokers), 0 active")
        broker.joined()
        broker.beat()
        assert worker.worker.health() == (True, "ready (1 of 2 brokers), 0 active")
        broker.send(work("a", frames=3))
        assert len(broker.stream("a")) == 3


# ---- more than there are places ----


@pytest.mark.parametrize("stage", [2], indirect=True)
def test_what_is_too_much_of_several_brokers_together_waits_in_line(stage: ScriptedStage, pair: Pair) -> None:
    one, other = pair
    stage.gate.clear()
    for name in ("a", "b"):
        one.send(work(name, frames=3))
    assert stage.in_step.wait(PATIENCE)
    held(one, 2)
    for name in ("c", "d"):
        other.send(work(name, frames=3))
    waits(other, 2)
    waits(one, 2)
    one.send(work("too many of one"))
    assert one.result(wire.StageFailed).code == "overloaded"
    stage.gate.set()
    for broker, name in ((one, "a"), (one, "b"), (other, "c"), (other, "d")):
        assert [frame.seq for frame in broker.stream(name)] == [0, 1, 2]
    for broker in pair:
        broker.regains(2)
        waits(broker, 0)
    assert stage.most == 2


@pytest.mark.parametrize("stage", [2], indirect=True)
def test_what_is_aborted_in_line_is_gone_at_once_though_the_engine_is_in_a_step(
    stage: ScriptedStage, pair: Pair
) -> None:
    one, other = pair
    stage.gate.clear()
    for name in ("a", "b"):
        one.send(work(name, frames=3))
    assert stage.in_step.wait(PATIENCE)
    held(one, 2)
    for name in ("c", "d"):
        other.send(work(name, frames=3))
    waits(other, 2)
    other.send(wire.Abort("c", 0))
    other.regains(1)
    waits(one, 1)
    stage.gate.set()
    assert len(other.stream("d")) == 3
    other.regains(1)
    other.quiet()
    assert not stage.freed


@pytest.mark.parametrize("stage", [1], indirect=True)
def test_an_abort_in_the_engine_lets_the_next_in_line_in(stage: ScriptedStage, pair: Pair) -> None:
    one, other = pair
    one.send(work("a", LONG))
    one.result(wire.Tokens)
    other.send(work("b", frames=3))
    waits(other, 1)
    one.send(wire.Abort("a", 0))
    assert len(other.stream("b")) == 3
    assert stage.most == 1


@pytest.mark.parametrize("stage", [1], indirect=True)
def test_a_request_that_fails_in_the_engine_lets_the_next_in_line_in(stage: ScriptedStage, pair: Pair) -> None:
    one, other = pair
    stage.gate.clear()
    one.send(work("a", seed=ScriptedStage.BREAKS_STEP))
    assert stage.in_step.wait(PATIENCE)
    other.send(work("b", seed=ScriptedStage.REFUSED))
    waits(other, 1)
    stage.gate.set()
    for broker in pair:
        assert broker.result(wire.StageFailed).code == "worker_failed"
    one.send(work("c"))
    assert one.stream("c")[0].last


class EchoStage(Stage):
    """Sends back the tokens it is fed, one frame a step."""

    name = "llm"
    takes = wire.GenerateWork
    feeds = wire.Tokens
    unit = "tokens"
    waiting = 0

    def __init__(self, capacity: int) -> None:
        super().__init__(BOOT.epoch, capacity)
        self._frames: deque[tuple[Work, wire.Tokens]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._frames)

    def accept(self, work: Work, message: wire.Message) -> None:
        if isinstance(message, wire.Tokens):
            self._frames.append((work, message))

    def abort(self, work: Work) -> None:
        self._frames = deque(entry for entry in self._frames if entry[0] != work)

    def step(self) -> list[Result]:
        work, frame = self._frames.popleft()
        return [Result(work, frame, ends=frame.last)]


def tokens(request_id: str, seq: int, *, last: bool = False) -> wire.Tokens:
    return wire.Tokens(request_id, 0, BOOT.epoch, seq, 0, last, last, np.full(2, seq, np.int32))


def test_input_of_work_in_line_waits_with_it_and_keeps_its_order() -> None:
    one, other = FakeBroker(), FakeBroker()
    with running(EchoStage(capacity=1), one.address, other.address):
        for broker in (one, other):
            broker.joined()
        one.send(work("a"))
        held(one)
        other.send(work("b"))
        for seq in range(50):
            other.send(tokens("b", seq))
        waits(other, 1)
        other.quiet()
        one.send(tokens("a", 0, last=True))
        assert one.stream("a") == [tokens("a", 0, last=True)]
        other.send(tokens("b", 50, last=True))
        assert [frame.tokens[0] for frame in other.stream("b")] == [*range(51)]


# ---- one in trouble ----


def test_a_broker_that_dies_and_comes_back_disturbs_no_work_of_another(stage: ScriptedStage, address: Address) -> None:
    dying, other = FakeBroker(address), FakeBroker()
    with running(stage, address, other.address):
        for broker in (dying, other):
            broker.joined()
        stage.gate.clear()
        dying.send(work("a", LONG))
        other.send(work("a", frames=300))
        held(other)
        dying.close()
        stage.gate.set()
        assert [frame.seq for frame in other.stream("a")] == [*range(300)]
        other.regains(1)
        back = FakeBroker(address)
        assert back.joined().credit == stage.capacity
        back.send(work("a", frames=3))
        assert [frame.seq for frame in back.stream("a")] == [0, 1, 2]
        other.quiet()
    assert names(stage.freed) == {("a", 0)}


@pytest.mark.parametrize("stage", [2], indirect=True)
def test_to_register_anew_at_one_broker_drops_its_work_alone_in_the_engine_and_in_line(
    stage: ScriptedStage, pair: Pair
) -> None:
    forgetful, other = pair
    stage.gate.clear()
    forgetful.send(work("in the engine", LONG))
    forgetful.beat()
    other.send(work("beside it", frames=200))
    held(other)
    forgetful.send(work("in line", LONG))
    waits(forgetful, 1)
    other.send(work("last in line", frames=5))
    waits(other, 2)
    forgetful.knows = False
    forgetful.beat()
    until(lambda: forgetful.pump(1) is None and other.beat().waiting == 0)
    stage.gate.set()
    forgetful.registered()
    forgetful.knows = True
    assert forgetful.control(wire.Grant).credit == 2
    assert len(other.stream("beside it")) == 200
    assert len(other.stream("last in line")) == 5
    other.regains(2)
    for broker in pair:
        broker.quiet()
    assert names(stage.freed) == {("in the engine", 0)}
    assert stage.most == 2


def test_a_broker_that_takes_no_results_holds_up_others_for_its_expiry_at_most(
    stage: ScriptedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or else libzmq would end the connection, whose heartbeats queue behind the results, and hide what is tested.
    monkeypatch.setattr(base, "SocketOptions", partial(SocketOptions, heartbeat_timeout_ms=FOR_EVER_MS))
    stuck, other = FakeBroker(high_water_mark=10), FakeBroker()
    with running(stage, stuck.address, other.address):
        stuck.joined(expiry_ms=300)
        other.joined()
        stuck.reading = False
        stuck.send(work("a", LONG, seed=ScriptedStage.BULKY))

        def stalled() -> bool:
            made = stage.made
            stuck.beat()
            stuck.beat()
            return made == stage.made > 0

        until(stalled)
        other.send(work("b", frames=500))
        assert stuck.control(wire.Register).epoch == BOOT.epoch
        assert [frame.seq for frame in other.stream("b")] == [*range(500)]
        other.regains(1)
        other.quiet()


class Narrow:
    """Takes as many messages as it has room for."""

    def __init__(self) -> None:
        self.room = 0

    def send(self, _target: bytes, _frames: Frames) -> Delivery:
        self.room -= 1
        return Delivery.SENT if self.room >= 0 else Delivery.FULL


def test_a_broker_that_reads_slowly_is_not_one_that_takes_nothing() -> None:
    narrow = Narrow()
    outbox = Outbox(narrow)
    assert not outbox.stands_still()
    for seq in range(3):
        outbox.add(pack(Result(Work("a", 0), tokens("a", seq), ends=False), 0, wire.VERSION))
    for room, left in ((1, 2), (1, 1)):
        narrow.room = room
        outbox.flush()
        assert len(outbox) == left
        assert not outbox.stands_still()
    narrow.room = 0
    outbox.flush()
    assert outbox.stands_still()
    narrow.room = 9
    outbox.flush()
    assert not outbox.stands_still()
    assert not outbox.stands_still()


def test_a_broker_whose_connection_for_results_breaks_is_joined_anew(stage: ScriptedStage) -> None:
    broker = FakeBroker(ELSEWHERE)
    with running(stage, broker.address):
        broker.joined()
        broker.send(work("a", LONG))
        broker.result(wire.Tokens)
        broker.lose_results()
        assert broker.joined().credit == stage.capacity
    assert names(stage.freed) == {("a", 0)}


def test_a_worker_does_not_offer_itself_where_its_results_cannot_go(
    stage: ScriptedStage, address: Address, tmp_path: Path
) -> None:
    other = FakeBroker()
    broker = FakeBroker(Address(address.workers, f"ipc://{tmp_path}/elsewhere"))
    with running(stage, address, other.address):
        other.joined()
        for _ in range(10):
            other.beat()
            broker.pump(1)
        assert not broker._control
        with Sockets(SocketOptions(linger_ms=0)) as sockets:
            sockets.pull(address.results)
            broker.joined()


def test_a_worker_whose_engine_is_in_a_long_step_does_not_offer_itself_to_a_broker_that_comes(
    stage: ScriptedStage, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat, "LONG_STEP", 0.05)
    monkeypatch.setattr(membership, "REGISTER_RETRY", 0.05)
    broker = FakeBroker()
    with running(stage, broker.address, address):
        broker.joined()
        stage.gate.clear()
        broker.send(work("a", frames=3))
        assert stage.in_step.wait(PATIENCE)
        for _ in range(20):
            broker.beat()
        late = FakeBroker(address)
        for _ in range(20):
            broker.beat()
            late.pump(1)
        assert not late._control
        stage.gate.set()
        late.joined()
        assert len(broker.stream("a")) == 3


@pytest.mark.parametrize("keys_first", ["at the worker", "at the broker"])
def test_a_worker_joins_once_it_and_its_broker_agree_about_keys(
    stage: ScriptedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys_first: str
) -> None:
    monkeypatch.setattr(connector, "REOPEN", 0.05)
    keys = Keyring(tmp_path)
    proof, guard = keys.admitted(Role.WORKER, "w"), Guard(keys.broker, lambda _: None)
    guards = [None, guard] if keys_first == "at the worker" else [guard, None]
    broker = FakeBroker(ELSEWHERE, guard=guards[0])
    healthy = FakeBroker(guard=guards[1])
    brokers = broker.address, healthy.address
    with capture_logs() as logs, running(stage, *brokers, proof=proof if guards[1] else None) as worker:
        healthy.joined()
        mismatched = "the handshake failed: broker and worker both need security.keys, of one broker, or neither"

        def told() -> bool:
            healthy.pump(10)
            return {log["endpoint"] for log in logs if log["event"] == mismatched} == {*broker.address}

        until(told)
        broker.close()
        broker = FakeBroker(broker.address, guard=guards[1])
        broker.joined()
        for each in (broker, healthy):
            each.send(work("a", frames=3))
            assert [frame.seq for frame in each.stream("a")] == [0, 1, 2]
        healthy.regains(1)
        healthy.quiet()
        sockets_and_their_events = 2 * len(brokers) * 2
        assert len(worker.worker._sockets._open) == sockets_and_their_events
    assert sum(log["event"] == mismatched for log in logs) == 2


# ---- versions of the protocol ----


def test_each_broker_is_spoken_to_in_a_version_it_understands(stage: ScriptedStage) -> None:
    old, new = FakeBroker(), FakeBroker()
    old.version = wire.OLDEST
    with running(stage, old.address, new.address):
        for broker in (old, new):
            broker.joined()
            broker.send(wire.EncodeWork("b", 0, "not for this worker", "", "", b""))
            assert broker.result(wire.StageFailed).request_id == "b"
            broker.send(work("a", frames=20))
        for broker in (old, new):
            assert len(broker.stream("a")) == 20
            broker.regains(1)
            broker.quiet()


def test_a_broker_that_comes_back_as_a_newer_one_is_greeted_as_such(stage: ScriptedStage, address: Address) -> None:
    broker = FakeBroker(address)
    broker.version = wire.OLDEST
    with running(stage, address):
        broker.joined()
        broker.send(work("a", LONG))
        broker.result(wire.Tokens)
        broker.close()
        broker = FakeBroker(address)
        broker.joined()
        broker.send(work("b", frames=20))
        assert len(broker.stream("b")) == 20


# ---- leaving ----


def farewell(broker: FakeBroker) -> None:
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))


@pytest.mark.parametrize("stage", [1], indirect=True)
def test_a_worker_drains_at_all_brokers_and_ends_when_each_has_had_its_results(
    stage: ScriptedStage, both: tuple[Running, FakeBroker, FakeBroker]
) -> None:
    worker, one, other = both
    stage.gate.clear()
    one.send(work("a", frames=20))
    assert stage.in_step.wait(PATIENCE)
    other.send(work("in line", frames=30))
    waits(other, 1)
    worker.worker.terminate()
    for broker in (one, other):
        broker.control(wire.Drain)
    stage.gate.set()
    assert len(one.stream("a")) == 20
    farewell(one)
    assert len(other.stream("in line")) == 30
    farewell(other)
    assert worker.join() == 0


def test_a_worker_that_leaves_does_not_wait_for_a_broker_it_has_not_joined(
    stage: ScriptedStage, address: Address
) -> None:
    broker = FakeBroker()
    with running(stage, broker.address, address) as worker:
        broker.joined()
        broker.send(work("a", frames=500))
        worker.worker.terminate()
        broker.control(wire.Drain)
        assert len(broker.stream("a")) == 500
        farewell(broker)
        assert worker.join() == 0


def test_an_engine_that_is_broken_ends_the_worker_at_all_brokers(
    stage: ScriptedStage, both: tuple[Running, FakeBroker, FakeBroker]
) -> None:
    worker, one, other = both
    stage.always_fails = True
    for name in "ab":
        one.send(work(name))
        assert one.result(wire.StageFailed).code == "worker_failed"
        one.regains(1)
    other.send(work("c"))
    for broker in (one, other):
        farewell(broker)
    assert worker.join() == 70
