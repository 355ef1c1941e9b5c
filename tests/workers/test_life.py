"""How a worker finds its broker, keeps it, loses it, and leaves it; and what the service manager hears of that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lighttts.transport import wire
from lighttts.workers import base, membership
from lighttts.workers.connector import Address
from tests.workers.fakes import BOOT, PATIENCE, FakeBroker, Running, ScriptedStage, running, work

LONG = 100_000


class Manager:
    """The service manager's side of sd_notify."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def hears(self, beginning: str) -> str:
        """The next notification line that begins so."""
        while True:
            for line in self._socket.recv(4096).decode().splitlines():
                if line.startswith(beginning):
                    return line

    def heard(self) -> list[str]:
        """All that has come by now."""
        lines: list[str] = []
        self._socket.setblocking(False)
        try:
            while True:
                lines += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            self._socket.settimeout(PATIENCE)
            return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    yield manager
    manager.close()


def serves(broker: FakeBroker, request_id: str) -> bool:
    """Whether a request sent now is answered, from its first frame on."""
    broker.send(work(request_id, frames=3))
    return [frame.seq for frame in broker.stream(request_id)] == [0, 1, 2]


def test_a_worker_waits_for_a_broker_that_is_not_there_and_says_so_once(
    manager: Manager, stage: ScriptedStage, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "REGISTER_RETRY", 0.1)
    with capture_logs() as logs, running(stage, address):
        for _ in range(6):
            manager.hears("STATUS=waiting")
        broker = FakeBroker(address)
        broker.joined()
        assert serves(broker, "a")
    warnings = [log["event"] for log in logs if log["log_level"] == "warning"]
    assert warnings == ["no answer from the broker, waiting for it"]


def test_after_a_restart_of_the_broker_the_worker_joins_with_its_epoch_full_credit_and_no_work(
    stage: ScriptedStage, address: Address
) -> None:
    broker = FakeBroker(address)
    with running(stage, broker.address):
        broker.joined()
        stage.gate.clear()
        broker.send(work("a", LONG))
        broker.send(work("b", LONG))
        assert stage.in_step.wait(PATIENCE)
        while broker.beat().active < 2:
            pass
        broker.close()
        broker = FakeBroker(address)
        stage.gate.set()
        assert broker.registered().epoch == BOOT.epoch
        assert broker.control(wire.Grant).credit == stage.capacity
        assert broker.beat().active == 0
        assert serves(broker, "c")
        broker.regains(1)
    assert {freed.request_id for freed in stage.freed} == {"a", "b"}


def test_a_request_that_is_sent_again_after_a_restart_has_nothing_of_its_first_life(
    stage: ScriptedStage, address: Address
) -> None:
    broker = FakeBroker(address)
    with running(stage, broker.address):
        broker.joined()
        stage.gate.clear()
        broker.send(work("a", LONG))
        assert stage.in_step.wait(PATIENCE)
        broker.close()
        broker = FakeBroker(address)
        stage.gate.set()
        broker.joined()
        broker.send(work("a", frames=3))
        assert [frame.seq for frame in broker.stream("a")] == [0, 1, 2]
        broker.regains(1)
        broker.quiet()


def test_a_worker_whose_engine_is_stuck_with_what_it_had_does_not_join_anew(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", LONG))
    assert stage.in_step.wait(PATIENCE)
    broker.knows = False
    broker.beat()
    for _ in range(5):
        broker.pump()
    assert not broker._control
    broker.knows = True
    stage.gate.set()
    assert broker.registered().epoch == BOOT.epoch


def test_a_broker_that_does_not_know_the_worker_is_joined_anew(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    broker.send(work("a", LONG))
    broker.knows = False
    assert broker.registered().epoch == BOOT.epoch
    broker.knows = True
    assert broker.control(wire.Grant).credit == stage.capacity
    while broker.beat().active:
        pass
    assert [freed.request_id for freed in stage.freed] == ["a"]


def test_a_silent_broker_is_joined_anew(broker: FakeBroker, stage: ScriptedStage, worker: Running) -> None:
    broker.joined(heartbeat_ms=20, expiry_ms=200)
    broker.answers = False
    broker.registered()
    broker.answers = True
    assert broker.control(wire.Grant).credit == stage.capacity


def test_work_that_crosses_a_registration_is_not_begun(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    broker.knows = False
    broker.control(wire.Register)
    broker.send(work("a"))
    broker.knows = True
    broker.joined()
    broker.quiet()
    assert stage.most == 0


def test_draining_finishes_what_is_held_and_takes_no_new_credit(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", frames=30))
    assert stage.in_step.wait(PATIENCE)
    worker.worker.terminate()
    assert broker.control(wire.Drain).epoch == BOOT.epoch
    assert not worker.worker.health()[0]
    broker.quiet()
    stage.gate.set()
    assert len(broker.stream("a")) == 30
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))
    assert worker.join() == 0


def test_work_that_crosses_the_drain_message_is_done(broker: FakeBroker, stage: ScriptedStage, worker: Running) -> None:
    broker.joined()
    broker.answers = False
    worker.worker.terminate()
    broker.control(wire.Drain)
    broker.send(work("a", frames=3))
    broker.answers = True
    assert len(broker.stream("a")) == 3
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))
    assert worker.join() == 0


def test_an_idle_worker_drains_at_once(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    worker.worker.terminate()
    broker.control(wire.Drain)
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))
    assert worker.join() == 0


@pytest.mark.parametrize("asked", ["twice to drain", "to stop"])
def test_asked_to_end_at_once_a_worker_leaves_its_work(
    broker: FakeBroker, stage: ScriptedStage, worker: Running, asked: str
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", LONG))
    assert stage.in_step.wait(PATIENCE)
    if asked == "to stop":
        worker.worker.stop()
    else:
        worker.worker.terminate()
        broker.control(wire.Drain)
        worker.worker.terminate()
    broker.control(wire.Bye)
    stage.gate.set()
    broker.send(wire.Farewell(BOOT.epoch))
    assert worker.join() == 0


def test_a_worker_without_a_broker_ends_when_asked(stage: ScriptedStage, address: Address) -> None:
    with running(stage, address) as worker:
        worker.worker.terminate()
        assert worker.join() == 0


def test_a_broker_that_says_no_farewell_is_not_awaited_for_ever(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    worker.worker.terminate()
    broker.control(wire.Drain)
    broker.control(wire.Bye)
    assert worker.join() == 0


def test_asking_a_worker_that_has_ended_changes_nothing(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    worker.worker.stop()
    broker.control(wire.Bye)
    broker.send(wire.Farewell(BOOT.epoch))
    worker.join()
    worker.worker.terminate()
    worker.worker.stop()


def test_an_engine_that_does_not_come_back_does_not_keep_the_worker(
    broker: FakeBroker, stage: ScriptedStage, worker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "COMPUTE_STOP", 0.05)
    broker.joined()
    stage.gate.clear()
    broker.send(work("a"))
    assert stage.in_step.wait(PATIENCE)
    worker.worker.stop()
    broker.control(wire.Bye)
    broker.send(wire.Farewell(BOOT.epoch))
    worker.join()
    assert worker.worker.hung


def test_the_service_manager_hears_ready_after_the_registration_then_status_then_stopping(
    manager: Manager, broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    assert manager.hears("STATUS=") == "STATUS=waiting for the broker, 0 active, 0 tokens/s"
    assert "READY=1" not in manager.heard()
    broker.joined()
    manager.hears("READY=1")
    assert manager.hears("STATUS=ready").endswith(" tokens/s")
    worker.worker.terminate()
    manager.hears("STOPPING=1")


def test_waiting_for_the_broker_does_not_run_into_the_start_timeout(manager: Manager, worker: Running) -> None:
    manager.hears("EXTEND_TIMEOUT_USEC=")
    manager.hears("EXTEND_TIMEOUT_USEC=")


def test_the_watchdog_is_fed_while_the_engine_moves_or_waits_and_starves_when_it_hangs(
    manager: Manager, broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined(heartbeat_ms=20)
    for _ in range(3):
        manager.hears("WATCHDOG=1")
    stage.gate.clear()
    broker.send(work("a"))
    assert stage.in_step.wait(PATIENCE)
    for _ in range(5):
        broker.beat()
    manager.heard()
    for _ in range(10):
        broker.beat()
    assert "WATCHDOG=1" not in manager.heard()
    stage.gate.set()
    manager.hears("WATCHDOG=1")
