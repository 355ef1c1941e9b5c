"""Workers come, beat, drain, leave and die."""

from __future__ import annotations

import pytest

from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import SAMPLE_RATE, Harness, audio, encoded, raw, synth


def register(epoch: int, name: str = "worker", stage: str = "encode") -> wire.Register:
    """What a worker says first."""
    return wire.Register(name, epoch, stage, "test", "model", SAMPLE_RATE, ("anna",))


def waiting(harness: Harness) -> int:
    """Requests that no worker has."""
    return harness.core.load().waiting


def test_registration_is_answered_with_the_heartbeat_and_expiry_times() -> None:
    harness = Harness(heartbeat_s=0.5, expiry_s=2.5)
    assert harness.control(b"w", register(7)) == [wire.Registered(7, "test", 500, 2500)]


def test_heartbeats_are_answered_and_tell_a_stranger_to_register() -> None:
    harness = Harness()
    beat = wire.Heartbeat(7, 0, 0, 0)
    assert harness.control(b"w", beat) == [wire.Alive(7, known=False)]
    harness.control(b"w", register(7))
    assert harness.control(b"w", beat) == [wire.Alive(7, known=True)]
    assert harness.control(b"w", wire.Heartbeat(8, 0, 0, 0)) == [wire.Alive(8, known=False)]


def test_credit_of_a_stranger_gets_no_work() -> None:
    harness = Harness()
    assert harness.control(b"w", wire.Grant(7, 5)) == [wire.Alive(7, known=False)]
    harness.say(synth())
    assert harness.take(b"w") == []


def test_a_silent_worker_is_given_up() -> None:
    harness = Harness(expiry_s=5.0, stall_s=10.0)
    harness.stack()
    harness.say(synth())
    alive = [(b"llm-2", 2), (b"decode-3", 3)]
    harness.pass_time(5.0, alive=alive)
    assert harness.core.load().workers["encode"] == 1
    harness.tick(0.1, alive=alive)
    assert harness.core.load().workers == {"encode": 0, "llm": 1, "decode": 1}
    assert waiting(harness) == 1
    assert harness.control(b"encode-1", wire.Heartbeat(1, 0, 0, 0))[-1] == wire.Alive(1, known=False)


def test_a_worker_whose_connection_is_gone_is_given_up_as_soon_as_it_misses_a_beat() -> None:
    harness = Harness(heartbeat_s=0.5)
    harness.stack()
    harness.gone.add(b"llm-2")
    harness.tick(0.5)
    assert harness.core.load().workers["llm"] == 1
    harness.tick(0.2)
    assert harness.core.load().workers["llm"] == 0


def test_a_worker_whose_engine_stands_still_with_work_in_hand_is_given_up() -> None:
    harness = Harness(stall_s=2.0)
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1))
    for _ in range(5):
        harness.tick(0.5, alive=[(b"encode-1", 1), (b"decode-3", 3)])
        harness.control(b"llm-2", wire.Heartbeat(2, 1, 0, 77))
    assert harness.core.load().workers["llm"] == 1
    harness.tick(0.1)
    assert harness.core.load().workers == {"encode": 1, "llm": 0, "decode": 1}


def test_a_worker_without_work_may_stand_still() -> None:
    harness = Harness(stall_s=2.0)
    harness.stack()
    for _ in range(10):
        harness.tick(0.5)
        for epoch, worker in enumerate((b"encode-1", b"llm-2", b"decode-3"), 1):
            harness.control(worker, wire.Heartbeat(epoch, 0, 0, 77))
    assert harness.core.load().workers == {"encode": 1, "llm": 1, "decode": 1}


def test_time_in_which_the_broker_itself_stood_still_expires_nobody() -> None:
    harness = Harness(expiry_s=5.0)
    harness.stack()
    harness.say(synth())
    harness.tick(60.0)
    assert harness.core.load().workers == {"encode": 1, "llm": 1, "decode": 1}


def test_registering_again_is_a_clean_slate() -> None:
    harness = Harness()
    worker = harness.worker("encode", 1, credit=3)
    harness.say(synth("r1"))
    harness.take(worker)
    assert harness.control(worker, register(1)) == [wire.Registered(1, "test", 500, 2500)]
    harness.say(synth("r2"))
    assert harness.take(worker) == []
    (work,) = harness.control(worker, wire.Grant(1, 1))
    assert isinstance(work, wire.EncodeWork)
    assert (work.request_id, work.attempt) == ("r1", 1)


def test_a_new_boot_on_the_same_connection_replaces_the_old_one() -> None:
    harness = Harness()
    worker = harness.worker("encode", 1)
    harness.say(synth())
    harness.control(worker, register(2))
    assert waiting(harness) == 1
    assert harness.control(worker, wire.Heartbeat(1, 0, 0, 0)) == [wire.Alive(1, known=False)]
    assert harness.control(worker, wire.Heartbeat(2, 0, 0, 0)) == [wire.Alive(2, known=True)]


def test_a_restarted_worker_replaces_its_silent_predecessor_before_that_expires() -> None:
    harness = Harness(heartbeat_s=1.0, expiry_s=60.0)
    harness.control(b"old", register(1, "encode@1"), wire.Grant(1, 1))
    harness.say(synth())
    harness.pass_time(2.5)
    harness.control(b"new", register(2, "encode@1"))
    assert waiting(harness) == 1
    assert harness.core.load().workers["encode"] == 1


def test_what_waits_for_a_worker_is_not_sent_to_its_next_registration() -> None:
    harness = Harness()
    worker = harness.worker("encode", 1)
    harness.full.add(worker)
    harness.say(synth())
    harness.control(worker, register(1))
    harness.full.clear()
    harness.tick()
    assert [type(message) for message in harness.take(worker)] == [wire.Registered]


def test_a_boot_that_comes_by_another_connection_is_the_same_worker() -> None:
    harness = Harness()
    harness.control(b"one", register(1))
    harness.control(b"two", register(1, "renamed"))
    assert harness.core.load().workers["encode"] == 1


def test_two_talking_workers_of_one_name_leave_each_other_alone() -> None:
    harness = Harness()
    harness.control(b"one", register(1, "same"))
    harness.control(b"two", register(2, "same"))
    assert harness.core.load().workers["encode"] == 2


def test_a_worker_with_nothing_in_hand_leaves_at_once() -> None:
    harness = Harness()
    worker = harness.worker("encode", 1)
    harness.control(worker, wire.Drain(1))
    assert harness.control(worker, wire.Bye(1)) == [wire.Farewell(1)]
    assert harness.core.load().workers["encode"] == 0


def test_last_results_that_come_after_bye_still_count() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.take(b"encode-1")
    assert harness.control(b"encode-1", wire.Bye(1)) == []
    harness.result(encoded("r1", 1))
    assert len(harness.take(b"llm-2")) == 1
    harness.tick(0.1)
    assert harness.take(b"encode-1") == [wire.Farewell(1)]


def test_what_a_leaving_worker_does_not_send_soon_is_lost() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.control(b"encode-1", wire.Bye(1))
    harness.tick(0.4)
    assert waiting(harness) == 0
    harness.tick(0.1)
    assert waiting(harness) == 1
    assert harness.take(b"encode-1") == [wire.Farewell(1)]


def test_a_stranger_may_leave() -> None:
    harness = Harness()
    assert harness.control(b"w", wire.Bye(9)) == [wire.Farewell(9)]


def test_the_number_of_workers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.broker.workers.MAX_WORKERS", 1)
    harness = Harness()
    harness.worker("encode", 1)
    (error,) = harness.control(b"w", register(2))
    assert isinstance(error, wire.Error)
    assert error.code == "overloaded"


@pytest.mark.parametrize("message", [synth(), audio("r1", 3, 0), wire.Registered(1, "", 1, 1)])
def test_what_is_no_message_of_a_worker_is_answered_with_an_error(message: Message) -> None:
    harness = Harness()
    (error,) = harness.control(b"w", message)
    assert isinstance(error, wire.Error)
    assert error.code == "protocol"
    assert type(message).__name__ in error.text


def test_garbage_on_the_control_connection_is_answered_with_an_error() -> None:
    harness = Harness()
    harness.carry_out(harness.core.worker_message(b"w", [b"LT\x09\x40", *raw(register(1))[1:]], harness.now))
    (error,) = harness.take(b"w")
    assert isinstance(error, wire.Error)
    assert "version 9" in error.text
