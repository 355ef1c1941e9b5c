"""A worker against a broker of real sockets: registration, credit, beats, work, aborts, failures."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from lighttts.transport import wire
from lighttts.workers import base, compute
from lighttts.workers.stage import Work
from tests.workers.fakes import BOOT, FakeBroker, Running, ScriptedStage, running, work

ENDLESS = 200_000


def refused(why: str) -> float:
    return REGISTRY.get_sample_value("light_tts_frames_refused_total", {"service": "llm", "why": why}) or 0.0


def stalled(broker: FakeBroker, stage: ScriptedStage) -> float:
    """Waits until work is held and the engine has made nothing for five heartbeats; what it has made so far."""
    made, still = -1.0, 0
    while still < 5:
        beat = broker.beat()
        still = still + 1 if stage.made == made and beat.active else 0
        made = stage.made
    return made


def tokens(request_id: str) -> wire.Tokens:
    return wire.Tokens(request_id, 0, 7, 0, 0, False, False, np.zeros(1, np.int32))


def test_a_worker_introduces_itself_and_grants_its_capacity(broker: FakeBroker, worker: Running) -> None:
    hello = broker.registered()
    assert (hello.stage, hello.worker, hello.epoch) == ("llm", BOOT.worker, BOOT.epoch)
    assert (hello.model, hello.sample_rate) == ("scripted:0", 24_000)
    assert broker.control(wire.Grant) == wire.Grant(BOOT.epoch, 4)


def test_every_boot_has_an_epoch_of_its_own() -> None:
    one, other = (type(BOOT)("llm", "m", 24_000) for _ in range(2))
    assert one.epoch != other.epoch


def test_every_connection_has_a_routing_id_that_the_broker_gives(broker: FakeBroker, worker: Running) -> None:
    broker.registered()
    assert broker.peer[:1] == b"\0"


def test_registration_is_repeated_until_it_is_answered(broker: FakeBroker, worker: Running) -> None:
    assert broker.control(wire.Register) == broker.registered()
    broker.control(wire.Grant)


def test_credit_comes_back_one_for_one_as_requests_end(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    credit = broker.joined().credit
    for index in range(12):
        while not credit:
            credit += broker.control(wire.Grant).credit
        broker.send(work(f"r{index}", frames=3))
        credit -= 1
    for index in range(12):
        assert len(broker.stream(f"r{index}")) == 3
    while credit < stage.capacity:
        credit += broker.control(wire.Grant).credit
    assert credit == stage.capacity
    broker.quiet()
    assert stage.most <= stage.capacity


def test_work_beyond_the_granted_credit_is_answered_with_overloaded_and_earns_no_credit(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    for index in range(stage.capacity):
        broker.send(work(f"r{index}"))
    broker.send(work("one-too-many"))
    failure = broker.result(wire.StageFailed)
    assert (failure.request_id, failure.code, failure.retryable) == ("one-too-many", "overloaded", True)
    broker.quiet()


def test_results_of_a_request_are_in_order_and_name_epoch_and_attempt(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    broker.send(work("a", frames=50, attempt=3))
    frames = broker.stream("a")
    assert [frame.seq for frame in frames] == list(range(50))
    assert {(frame.epoch, frame.attempt) for frame in frames} == {(BOOT.epoch, 3)}
    assert [frame.last for frame in frames] == [False] * 49 + [True]


def test_heartbeats_go_on_and_their_progress_stands_still_while_a_step_hangs(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a"))
    assert stage.in_step.wait(10)
    beats = [broker.beat() for _ in range(10)]
    assert len({(beat.active, beat.progress) for beat in beats}) == 1
    stage.gate.set()
    broker.stream("a")
    while (beat := broker.beat()).active:
        pass
    assert beat.progress > beats[0].progress


def test_progress_goes_on_while_there_is_nothing_to_do(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    assert len({broker.beat().progress for _ in range(5)}) == 5


def test_an_abort_frees_the_request_before_the_next_step_and_gives_its_credit_back(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", frames=ENDLESS))
    broker.send(work("b", frames=ENDLESS))
    assert stage.in_step.wait(10)
    broker.send(wire.Abort("a", 0))
    broker.send(wire.Abort("a", 0))
    broker.beat()
    broker.quiet()
    stage.in_step.clear()
    stage.gate.set()
    broker.regains(1)
    assert stage.freed == [Work("a", 0)]
    broker.send(wire.Abort("b", 0))
    broker.regains(1)
    broker.send(wire.Abort("a", 0))
    broker.send(wire.Abort("never-seen", 0))
    while broker.beat().active:
        pass
    broker.send(work("c"))
    while (frame := broker.result(wire.Tokens)).request_id != "c":
        pass
    assert frame.last


def test_nothing_is_sent_of_a_request_after_its_abort(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", frames=5))
    assert stage.in_step.wait(10)
    broker.send(wire.Abort("a", 0))
    broker.quiet()
    stage.gate.set()
    broker.control(wire.Grant)
    broker.quiet()


@pytest.mark.parametrize("seed", [ScriptedStage.REFUSED, ScriptedStage.UNSENDABLE])
def test_a_request_that_fails_fails_alone(broker: FakeBroker, stage: ScriptedStage, worker: Running, seed: int) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("good", frames=20))
    broker.send(work("bad", frames=20, seed=seed))
    stage.gate.set()
    frames, failures = [], []
    while not (frames and frames[-1].last and failures):
        message = broker.result(wire.Message)
        (failures if isinstance(message, wire.StageFailed) else frames).append(message)
    assert [frame.seq for frame in frames] == list(range(20))
    assert [(failure.request_id, failure.code, failure.epoch) for failure in failures] == [
        ("bad", "worker_failed", BOOT.epoch)
    ]
    broker.regains(2)


def test_a_step_that_fails_ends_the_requests_in_it_and_the_worker_goes_on(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a"))
    assert stage.in_step.wait(10)
    broker.send(work("b", frames=2))
    broker.send(work("c", frames=2, seed=ScriptedStage.BREAKS_STEP))
    broker.quiet()
    stage.gate.set()
    broker.stream("a")
    failures = [broker.result(wire.StageFailed) for _ in range(2)]
    assert {(failure.request_id, failure.code) for failure in failures} == {
        ("b", "worker_failed"),
        ("c", "worker_failed"),
    }
    assert "FloatingPointError" in failures[0].text
    broker.send(work("d", frames=2))
    assert len(broker.stream("d")) == 2


def test_an_engine_that_only_fails_ends_the_worker_with_an_error(
    broker: FakeBroker, stage: ScriptedStage, worker: Running
) -> None:
    broker.joined()
    stage.always_fails = True
    for index in range(compute.MAX_STEP_FAILURES - 1):
        broker.send(work(f"r{index}"))
        assert broker.result(wire.StageFailed).code == "worker_failed"
        broker.control(wire.Grant)
    broker.send(work("last"))
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))
    assert worker.join() == 70


def test_messages_that_make_no_sense_are_counted_and_survived(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    before = {why: refused(why) for why in ("malformed", "unknown")}
    broker.send_raw(b"LT\x03\x52", b"\xff")
    broker.send_raw(b"GET / HTTP/1.1")
    broker.send(wire.Hello("client", "software"))
    broker.send(wire.Registered(BOOT.epoch + 1, "another", 20, 60_000))
    broker.send(tokens("a"))
    broker.send(wire.Error("", "protocol", "text", "", False, 0))
    broker.send(work("a"))
    assert broker.stream("a")[0].last
    assert refused("malformed") - before["malformed"] == 2
    assert refused("unknown") - before["unknown"] == 3


def test_work_of_another_stage_is_answered_with_an_error(broker: FakeBroker, worker: Running) -> None:
    broker.joined()
    broker.send(wire.EncodeWork("a", 0, "text", "voice", "", b""))
    assert broker.result(wire.StageFailed).code == "protocol"


def test_the_same_work_sent_twice_is_done_once(broker: FakeBroker, stage: ScriptedStage, worker: Running) -> None:
    broker.joined()
    stage.gate.clear()
    broker.send(work("a", frames=2))
    broker.send(work("a", frames=2))
    broker.quiet()
    stage.gate.set()
    assert len(broker.stream("a")) == 2
    broker.regains(1)
    broker.quiet()


def test_nothing_is_lost_or_reordered_when_the_broker_reads_slowly(stage: ScriptedStage) -> None:
    """More frames than the sockets and the kernel hold, and than the worker keeps unsent: the engine must pause."""
    broker = FakeBroker(high_water_mark=10)
    frames = 2000
    with running(stage, broker.address):
        broker.joined()
        broker.reading = False
        for name in ("a", "b"):
            broker.send(work(name, frames, seed=ScriptedStage.BULKY))
        assert 0 < stalled(broker, stage) < 2 * frames
        broker.reading = True
        streams = {name: broker.stream(name) for name in ("a", "b")}
    assert {name: [frame.tokens[0] for frame in stream] for name, stream in streams.items()} == {
        "a": list(range(frames)),
        "b": list(range(frames)),
    }


def test_an_abort_is_obeyed_while_the_broker_reads_slowly(stage: ScriptedStage) -> None:
    broker = FakeBroker(high_water_mark=10)
    with running(stage, broker.address):
        broker.joined()
        broker.reading = False
        broker.send(work("a", frames=ENDLESS, seed=ScriptedStage.BULKY))
        stalled(broker, stage)
        broker.send(wire.Abort("a", 0))
        broker.regains(1)
        assert stage.freed == [Work("a", 0)]


def test_health_says_whether_work_can_be_taken(
    broker: FakeBroker, stage: ScriptedStage, worker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.worker.health() == (False, "waiting for the broker, 0 active")
    broker.joined()
    broker.beat()
    assert worker.worker.health() == (True, "ready, 0 active")
    monkeypatch.setattr(base, "STUCK", -1.0)
    healthy, sentence = worker.worker.health()
    assert not healthy
    assert "in one step" in sentence
