"""Every way a request ends: each reaches the client as exactly one word, and every stage that holds the request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lighttts.broker.instructions import PARKED_S, Metric
from lighttts.broker.outbox import Channel
from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import CLIENT, Harness, audio, encoded, synth, tokens

ALIVE = ((b"encode-1", 1), (b"llm-2", 2), (b"decode-3", 3))


def received(harness: Harness) -> list[bytes]:
    """The record is not safe yet."""
    harness.say(synth())
    return []


def admitted(harness: Harness) -> list[bytes]:
    """It waits for an encode worker."""
    harness.say(synth())
    harness.stored("r1")
    return []


def encoding(harness: Harness) -> list[bytes]:
    """An encode worker has it."""
    harness.worker("encode", 1)
    admitted(harness)
    return [b"encode-1"]


def waiting_for_llm(harness: Harness) -> list[bytes]:
    """It waits for an llm worker."""
    encoding(harness)
    harness.result(encoded("r1", 1))
    return []


def generating(harness: Harness) -> list[bytes]:
    """An llm worker has it, no token is made."""
    harness.worker("llm", 2)
    waiting_for_llm(harness)
    return [b"llm-2"]


def undecoded(harness: Harness) -> list[bytes]:
    """Tokens wait for a decode worker."""
    generating(harness)
    harness.result(tokens("r1", 2, 0))
    return [b"llm-2"]


def streaming(harness: Harness) -> list[bytes]:
    """An llm and a decode worker have it."""
    harness.worker("decode", 3)
    undecoded(harness)
    harness.result(audio("r1", 3, 0))
    return [b"llm-2", b"decode-3"]


def decoding(harness: Harness) -> list[bytes]:
    """A decode worker has it, all tokens are made."""
    streaming(harness)
    harness.result(tokens("r1", 2, 1, last=True))
    return [b"decode-3"]


def flushing(harness: Harness) -> list[bytes]:
    """No worker has it, the client's credit is used up."""
    decoding(harness)
    harness.core._board.requests.live["r1"].outbox.credit = 0
    harness.result(audio("r1", 3, 1, last=True))
    return []


LIVE = [received, admitted, encoding, waiting_for_llm, generating, undecoded, streaming, decoding, flushing]
Reach = Callable[[Harness], list[bytes]]


@pytest.fixture(params=LIVE)
def reached(request: pytest.FixtureRequest) -> tuple[Harness, list[bytes]]:
    """A request in each state in turn, and the workers that have something of it."""
    harness = Harness(durable=True, no_worker_s=1000)
    holders = request.param(harness)
    for peer in (CLIENT, b"encode-1", b"llm-2", b"decode-3"):
        harness.take(peer)
    return harness, holders


def assert_ended(harness: Harness, holders: list[bytes], code: str) -> None:
    """One error went to the client, one abort to each holder and to nobody else; after `EndAck` nothing is left."""
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code) == ("r1", code)
    aborted = [worker for worker, _ in ALIVE if harness.take(worker) == [wire.Abort("r1", 0)]]
    assert aborted == holders
    assert harness.say(wire.EndAck("r1")) == []
    assert harness.free


def test_a_cancel_reaches_every_stage_at_once(reached: tuple[Harness, list[bytes]]) -> None:
    harness, holders = reached
    for _ in range(3):
        harness.carry_out(harness.core.client_message(CLIENT, frames_of(wire.Cancel("r1")), harness.now))
    assert_ended(harness, holders, "cancelled")


def frames_of(message: Message) -> list[bytes]:
    """The message as received."""
    return [bytes(frame) for frame in wire.encode(message)]


def test_the_deadline_reaches_every_stage_at_once(reached: tuple[Harness, list[bytes]]) -> None:
    harness, holders = reached
    harness.core._board.requests.live["r1"].deadline = harness.now + 0.05
    harness.tick(0.01)
    assert harness.take(CLIENT) == []
    harness.tick(0.04)
    assert_ended(harness, holders, "deadline_exceeded")


def test_a_client_that_is_gone_frees_everything(reached: tuple[Harness, list[bytes]]) -> None:
    harness, holders = reached
    harness.gone.add(CLIENT)
    known = harness.core.known_peers(Channel.WORKERS)
    harness.pass_time(2, alive=[(worker, epoch) for worker, epoch in ALIVE if worker in known])
    aborted = [worker for worker, _ in ALIVE if wire.Abort("r1", 0) in harness.take(worker)]
    assert aborted == holders
    assert harness.free
    assert not harness.mail[CLIENT]
    harness.now += PARKED_S
    harness.store.renew()
    assert not harness.store.requests


def test_a_request_takes_the_deadline_it_asks_for_or_the_default() -> None:
    harness = Harness(deadline_s=20.0, no_worker_s=1000)
    harness.say(synth("short", deadline_ms=1500), synth("default"))
    harness.tick(1.4)
    assert harness.take(CLIENT) == []
    harness.tick(0.1)
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code, error.retryable) == ("short", "deadline_exceeded", True)
    harness.say(wire.EndAck("short"))
    harness.tick(18.4)
    assert not any(isinstance(message, wire.Error) for message in harness.take(CLIENT))
    harness.tick(0.1)
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert error.request_id == "default"


def complete(harness: Harness) -> wire.End:
    """Brings r1 to its `End`."""
    decoding(harness)
    harness.result(audio("r1", 3, 1, last=True))
    end = harness.take(CLIENT)[-1]
    assert isinstance(end, wire.End)
    return end


def test_end_is_repeated_until_it_is_acknowledged() -> None:
    harness = Harness(durable=True)
    end = complete(harness)
    harness.pass_time(6, alive=ALIVE)
    assert harness.take(CLIENT) == [end] * 3
    harness.say(wire.EndAck("r1"))
    assert harness.free
    harness.pass_time(6, alive=ALIVE)
    assert harness.take(CLIENT) == []


def test_an_end_that_is_never_acknowledged_is_forgotten_after_a_while() -> None:
    harness = Harness(durable=True)
    complete(harness)
    harness.pass_time(29, alive=ALIVE)
    assert not harness.free
    harness.pass_time(2, alive=ALIVE)
    assert harness.free


def test_an_end_that_a_full_client_could_not_take_is_sent_once_it_can() -> None:
    harness = Harness(durable=True)
    decoding(harness)
    harness.take(CLIENT)
    harness.full.add(CLIENT)
    harness.result(audio("r1", 3, 1, last=True))
    harness.pass_time(5, alive=ALIVE)
    harness.full.clear()
    harness.tick(0.1)
    assert harness.take(CLIENT) == [audio("r1", 3, 1, last=True), wire.End("r1", 2, 50, 1)]


def test_requests_that_are_not_acknowledged_are_bounded() -> None:
    harness = Harness(max_requests=3)
    for number in range(10):
        harness.say(synth(f"r{number}"), wire.Cancel(f"r{number}"))
    assert harness.core.load().closing == 6


def test_a_cancel_that_crosses_end_changes_nothing() -> None:
    harness = Harness(durable=True)
    complete(harness)
    assert harness.say(wire.Cancel("r1")) == []
    harness.say(wire.EndAck("r1"))
    assert harness.free
    assert not harness.counted[Metric.FAILURES, "cancelled"]


def test_a_deadline_after_end_changes_nothing() -> None:
    harness = Harness(durable=True, deadline_s=1)
    complete(harness)
    harness.tick(1.5)
    assert harness.take(CLIENT) == []


def test_the_cancel_of_an_unknown_request_is_answered_as_any_other() -> None:
    harness = Harness()
    for _ in range(2):
        (error,) = harness.say(wire.Cancel("never"))
        assert isinstance(error, wire.Error)
        assert (error.request_id, error.code) == ("never", "cancelled")
    assert harness.free


def test_a_client_cannot_end_the_request_of_another() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.say(wire.Cancel("r1"), wire.EndAck("r1"), client=b"other")
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    harness.say(wire.EndAck("r1"), client=b"other")
    assert isinstance(harness.take(CLIENT)[-1], wire.End)
    assert not harness.free


def test_an_acknowledgement_before_the_end_is_not_one() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth(), wire.EndAck("r1"))
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    assert isinstance(harness.take(CLIENT)[-1], wire.End)


def test_clients_with_live_requests_are_looked_after_even_when_there_is_nothing_to_send() -> None:
    harness = Harness(no_worker_s=1000)
    harness.say(synth("r1"), synth("r2"))
    harness.say(wire.Hello("idle", "test"), client=b"idle")
    harness.pass_time(4)
    assert [type(message) for message in harness.take(CLIENT)] == [wire.Welcome] * 2
    assert harness.take(b"idle") == []


@pytest.mark.parametrize("absent", wire.STAGES)
def test_without_a_worker_of_a_needed_stage_a_request_fails_in_bounded_time(absent: str) -> None:
    harness = Harness(no_worker_s=3)
    for epoch, stage in enumerate(wire.STAGES, 1):
        if stage != absent:
            harness.worker(stage, epoch)
    alive = [(worker, epoch) for worker, epoch in ALIVE if not worker.startswith(absent.encode())]
    harness.pass_time(10, alive=alive)
    harness.say(synth())
    harness.pass_time(2.5, alive=alive)
    harness.take(CLIENT)
    harness.tick(0.5, alive=alive)
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.code, error.retryable) == ("no_worker", True)
    assert f"lighttts-{absent}" in error.text


def test_a_stage_that_is_away_for_a_moment_fails_nobody() -> None:
    harness = Harness(no_worker_s=3)
    harness.say(synth())
    harness.pass_time(2)
    harness.stack()
    harness.pass_time(2, alive=ALIVE)
    assert wire.Accepted("r1", 24000) in harness.take(CLIENT)
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    assert isinstance(harness.take(CLIENT)[-1], wire.End)


def test_a_stage_that_has_done_its_part_may_go() -> None:
    harness = Harness(no_worker_s=1)
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1))
    harness.control(b"encode-1", wire.Bye(1))
    harness.pass_time(5, alive=ALIVE[1:])
    harness.result(tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    assert isinstance(harness.take(CLIENT)[-1], wire.End)


def test_a_cancelled_requests_prompt_is_freed() -> None:
    harness = Harness()
    harness.say(synth(voice="", prompt=b"RIFF"), wire.Cancel("r1"), wire.EndAck("r1"))
    assert harness.free


def test_busy_workers_are_no_missing_workers() -> None:
    harness = Harness(no_worker_s=1)
    for epoch, stage in enumerate(wire.STAGES, 1):
        harness.worker(stage, epoch, credit=0)
    harness.say(synth())
    harness.take(CLIENT)
    harness.pass_time(20, alive=ALIVE)
    assert {type(message) for message in harness.take(CLIENT)} == {wire.Welcome}


def test_a_client_that_vanishes_with_more_unacknowledged_ends_than_are_kept_leaves_nothing_behind() -> None:
    harness = Harness(max_requests=2)
    harness.stack()
    harness.say(synth("live"))
    for ended in ("r2", "r3"):
        harness.say(synth(ended), wire.Cancel(ended))
    harness.gone.add(CLIENT)
    harness.carry_out(harness.core.gone(Channel.CLIENTS, CLIENT, harness.now))
    assert harness.free
