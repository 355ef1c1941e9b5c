"""The broker keeps every deadline itself: in each stage's queue, in each stage, and whoever holds a part is told."""

from __future__ import annotations

import pytest

from lighttts.broker.app import TICK_S
from lighttts.broker.outbox import Channel
from lighttts.transport import wire
from lighttts.transport.wire import STAGES, Message
from tests.broker.harness import CLIENT, Harness, audio, encoded, synth, tokens

EPOCHS = dict(zip(STAGES, (1, 2, 3), strict=True))
ALIVE = tuple((f"{stage}-{epoch}".encode(), epoch) for stage, epoch in EPOCHS.items())
DEADLINE_S = 3.0


def bring(harness: Harness, request_id: str, stage: str) -> None:
    """Takes a request through all stages before `stage`, of whose worker it asks a place."""
    harness.say(synth(request_id, deadline_ms=round(1000 * DEADLINE_S) if request_id == "late" else 0))
    if stage != "encode":
        harness.result(encoded(request_id, EPOCHS["encode"]))
    if stage == "decode":
        harness.result(tokens(request_id, EPOCHS["llm"], 0))


def crowded(stage: str) -> Harness:
    """One place in `stage`, which the request "first" has; "late" waits for it."""
    harness = Harness()
    for name, epoch in EPOCHS.items():
        harness.worker(name, epoch, credit=1 if name == stage else 4)
    bring(harness, "first", stage)
    bring(harness, "late", stage)
    for peer in (CLIENT, *(worker for worker, _ in ALIVE)):
        harness.take(peer)
    return harness


def told(harness: Harness) -> dict[bytes, list[Message]]:
    """Each worker's mail, but for answers to its heartbeats."""
    mail = {worker: harness.take(worker) for worker, _ in ALIVE}
    return {
        worker: messages
        for worker, all_of_it in mail.items()
        if (messages := [message for message in all_of_it if not isinstance(message, wire.Alive)])
    }


def errors(harness: Harness) -> list[wire.Error]:
    return [message for message in harness.take(CLIENT) if isinstance(message, wire.Error)]


def just_before_the_deadline(harness: Harness) -> None:
    harness.pass_time(DEADLINE_S - 0.5, alive=ALIVE)
    harness.tick(0.5 - TICK_S / 2, alive=ALIVE)
    assert errors(harness) == []
    assert told(harness) == {}


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_that_waits_in_a_queue_is_ended_within_a_tick_of_its_deadline(stage: str) -> None:
    harness = crowded(stage)
    just_before_the_deadline(harness)
    harness.tick(TICK_S, alive=ALIVE)
    (error,) = errors(harness)
    assert (error.request_id, error.code) == ("late", "deadline_exceeded")
    # While tokens wait for a decode worker, the llm worker still makes more.
    assert told(harness) == ({b"llm-2": [wire.Abort("late", 0)]} if stage == "decode" else {})


@pytest.mark.parametrize("stage", STAGES)
def test_a_place_that_comes_free_later_is_not_given_to_a_request_that_has_ended(stage: str) -> None:
    harness = crowded(stage)
    harness.pass_time(DEADLINE_S, alive=ALIVE)
    told(harness)
    bring(harness, "next", stage)
    harness.take(f"{stage}-{EPOCHS[stage]}".encode())
    messages = harness.control(f"{stage}-{EPOCHS[stage]}".encode(), wire.Grant(EPOCHS[stage], 2))
    assert {message.request_id for message in messages} == {"next"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_that_is_computed_is_ended_within_a_tick_and_every_worker_that_has_it_is_told(stage: str) -> None:
    harness = Harness()
    harness.stack()
    bring(harness, "late", stage)
    harness.take(CLIENT)
    told(harness)
    just_before_the_deadline(harness)
    harness.tick(TICK_S, alive=ALIVE)
    (error,) = errors(harness)
    assert error.code == "deadline_exceeded"
    holders = [b"llm-2", b"decode-3"] if stage == "decode" else [f"{stage}-{EPOCHS[stage]}".encode()]
    assert told(harness) == {worker: [wire.Abort("late", 0)] for worker in holders}
    harness.say(wire.EndAck("late"))
    assert harness.free


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_still_sends_after_the_deadline_goes_nowhere(stage: str) -> None:
    harness = Harness()
    harness.stack()
    bring(harness, "late", stage)
    harness.pass_time(DEADLINE_S, alive=ALIVE)
    harness.take(CLIENT)
    told(harness)
    result = {"encode": encoded("late", 1), "llm": tokens("late", 2, 0), "decode": audio("late", 3, 0)}[stage]
    harness.result(result)
    assert harness.take(CLIENT) == []
    assert told(harness) == {}


def test_a_deadline_ends_one_request_and_no_other() -> None:
    harness = crowded("llm")
    harness.pass_time(DEADLINE_S, alive=ALIVE)
    harness.take(CLIENT)
    harness.result(tokens("first", 2, 0, last=True), audio("first", 3, 0, last=True))
    assert isinstance(harness.take(CLIENT)[-1], wire.End)


@pytest.mark.parametrize("stage", STAGES)
def test_a_cancel_a_lost_client_and_a_deadline_free_the_place_in_the_same_step(stage: str) -> None:
    worker = f"{stage}-{EPOCHS[stage]}".encode()

    def cancel(harness: Harness) -> None:
        harness.say(wire.Cancel("late"))

    def vanish(harness: Harness) -> None:
        harness.carry_out(harness.core.gone(harness.core._board.requests.live["late"].outbox.channel, CLIENT, 1000.0))

    def expire(harness: Harness) -> None:
        harness.tick(DEADLINE_S)

    for end in (cancel, vanish, expire):
        harness = Harness()
        harness.stack()
        bring(harness, "late", stage)
        harness.take(worker)
        end(harness)
        assert harness.take(worker)[-1] == wire.Abort("late", 0)
        assert not any(worker.active for worker in harness.core._board.workers)
        assert not harness.core._board.requests.live


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_whose_worker_was_lost_keeps_its_deadline_while_it_waits_for_another(stage: str) -> None:
    harness = Harness()
    harness.stack()
    bring(harness, "late", stage)
    lost = f"{stage}-{EPOCHS[stage]}".encode()
    harness.gone.add(lost)
    harness.carry_out(harness.core.gone(Channel.WORKERS, lost, harness.now))
    harness.take(CLIENT)
    told(harness)
    others = [(worker, epoch) for worker, epoch in ALIVE if worker != lost]
    harness.pass_time(DEADLINE_S - 0.5, alive=others)
    assert errors(harness) == []
    harness.pass_time(0.5, alive=others)
    (error,) = errors(harness)
    assert (error.request_id, error.code) == ("late", "deadline_exceeded")
    assert told(harness) == ({b"llm-2": [wire.Abort("late", 0)]} if stage == "decode" else {})
    harness.worker(stage, 9)
    assert harness.take(f"{stage}-9".encode()) == []
    harness.say(wire.EndAck("late"))
    assert harness.free
