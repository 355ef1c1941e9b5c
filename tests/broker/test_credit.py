"""Flow control: workers get work against credit they granted, clients get frames against credit they granted."""

from __future__ import annotations

import pytest

from lighttts.transport import wire
from tests.broker.harness import CLIENT, Harness, audio, encoded, synth, tokens


def begin(harness: Harness, request: wire.Synth) -> None:
    """Brings a request to where its decode worker (epoch 3) has all tokens."""
    harness.say(request)
    harness.result(encoded(request.request_id, 1), tokens(request.request_id, 2, 0, last=True))


def test_without_credit_requests_wait_in_order_of_arrival() -> None:
    harness = Harness()
    harness.worker("encode", 1, credit=1)
    harness.say(synth("r1"), synth("r2"), synth("r3"))
    assert [work.request_id for work in harness.take(b"encode-1")] == ["r1"]  # type: ignore[attr-defined]
    work = harness.control(b"encode-1", wire.Grant(1, 2))
    assert [message.request_id for message in work] == ["r2", "r3"]  # type: ignore[attr-defined]
    harness.say(synth("r4"))
    assert not harness.take(b"encode-1")


def test_work_goes_to_the_worker_with_most_credit_then_to_the_one_with_least_in_hand() -> None:
    harness = Harness()
    harness.worker("encode", 1, credit=1)
    harness.worker("encode", 2, credit=2)
    harness.say(synth("r1"))
    assert len(harness.take(b"encode-2")) == 1
    harness.say(synth("r2"))
    assert len(harness.take(b"encode-1")) == 1
    harness.say(synth("r3"), synth("r4"))
    assert len(harness.take(b"encode-2")) == 1
    assert not harness.take(b"encode-1")


def test_a_draining_worker_gets_nothing_more_and_its_results_still_count() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth("r1"))
    harness.control(b"encode-1", wire.Drain(1), wire.Grant(1, 5))
    harness.say(synth("r2"))
    assert not harness.take(b"encode-1")
    harness.result(encoded("r1", 1))
    assert len(harness.take(b"llm-2")) == 1


def test_a_cancelled_request_does_not_use_up_credit_while_it_waits() -> None:
    harness = Harness()
    harness.worker("encode", 1, credit=0)
    harness.say(synth("r1"), synth("r2"), wire.Cancel("r1"))
    work = harness.control(b"encode-1", wire.Grant(1, 1))
    assert [message.request_id for message in work] == ["r2"]  # type: ignore[attr-defined]


def test_frames_without_credit_wait_and_end_waits_behind_them() -> None:
    harness = Harness()
    harness.stack()
    begin(harness, synth(credit=1))
    frames = [audio("r1", 3, seq, last=seq == 3) for seq in range(4)]
    harness.result(*frames)
    assert harness.take(CLIENT) == frames[:1]
    assert harness.core.load().held_bytes == sum(frame.samples.nbytes for frame in frames[1:]) + held_by_end()
    assert harness.say(wire.Credit("r1", 2)) == frames[1:3]
    assert harness.say(wire.Credit("r1", 1)) == [frames[3], wire.End("r1", 4, 25, 1)]
    assert harness.core.load().held_bytes == 0


def held_by_end() -> int:
    """Bytes counted for a waiting `End`."""
    return len(wire.encode(wire.End("r1", 4, 25, 1))[-1])


def test_accepted_and_end_cost_no_credit() -> None:
    harness = Harness()
    harness.stack()
    assert harness.say(synth(credit=0)) == [wire.Accepted("r1", 24000)]
    begin_rest = (encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    harness.result(*begin_rest)
    assert harness.take(CLIENT) == []
    assert [type(message) for message in harness.say(wire.Credit("r1", 1))] == [wire.Audio, wire.End]


def test_credit_is_capped_at_what_the_welcome_said() -> None:
    harness = Harness(max_credit=3)
    harness.stack()
    begin(harness, synth(credit=50))
    harness.take(CLIENT)
    harness.result(*(audio("r1", 3, seq) for seq in range(9)))
    assert len(harness.take(CLIENT)) == 3
    assert len(harness.say(wire.Credit("r1", 50))) == 3


def test_credit_of_another_client_is_not_taken() -> None:
    harness = Harness()
    harness.stack()
    begin(harness, synth(credit=0))
    harness.take(CLIENT)
    harness.result(audio("r1", 3, 0))
    harness.say(wire.Credit("r1", 5), client=b"other")
    assert harness.take(CLIENT) == []


def test_a_full_client_delays_no_other_and_loses_nothing() -> None:
    harness = Harness()
    harness.stack()
    begin(harness, synth("r1"))
    harness.say(synth("r2"), client=b"quick")
    harness.result(encoded("r2", 1), tokens("r2", 2, 0, last=True))
    harness.take(CLIENT)
    harness.take(b"quick")
    harness.full.add(CLIENT)
    slow = [audio("r1", 3, seq, last=seq == 2) for seq in range(3)]
    quick = [audio("r2", 3, seq, last=seq == 2) for seq in range(3)]
    for frames in zip(slow, quick, strict=True):
        harness.result(*frames)
    assert harness.take(b"quick") == [*quick, wire.End("r2", 3, 25, 1)]
    assert harness.take(CLIENT) == []
    harness.full.clear()
    harness.tick()
    assert harness.take(CLIENT) == [*slow, wire.End("r1", 3, 25, 1)]
    assert harness.core.tick(harness.now) == []


def test_a_full_worker_gets_its_messages_in_order_later() -> None:
    harness = Harness()
    harness.stack()
    harness.full.add(b"decode-3")
    made = [tokens("r1", 2, 0), tokens("r1", 2, 1, last=True)]
    harness.say(synth())
    harness.result(encoded("r1", 1), *made)
    harness.full.clear()
    harness.tick()
    messages = harness.take(b"decode-3")
    assert isinstance(messages[0], wire.DecodeWork)
    assert messages[1:] == made


def test_a_refusal_that_a_full_client_could_not_take_comes_later() -> None:
    harness = Harness()
    harness.full.add(CLIENT)
    harness.say(synth(text=""), *(wire.GetStatus(number) for number in range(1000)))
    harness.full.clear()
    harness.tick()
    error, *answers = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert error.request_id == "r1"
    assert [answer.query_id for answer in answers if isinstance(answer, wire.Status)] == [*range(63)]
    assert harness.free


def test_a_worker_that_reads_nothing_is_given_up() -> None:
    harness = Harness()
    harness.stack()
    begin(harness, synth())
    (worker,) = [worker for worker in harness.core._board.workers if worker.stage == "decode"]
    harness.full.add(b"decode-3")
    worker.outbox.add([b"", bytes(300 << 20)])
    harness.tick()
    assert harness.core.load().workers["decode"] == 0


def test_when_too_much_waits_for_clients_the_one_with_most_waiting_fails() -> None:
    harness = Harness()
    harness.stack()
    begin(harness, synth("greedy", credit=0))
    begin(harness, synth("modest", credit=0))
    harness.take(CLIENT)
    harness.core._board.output.limit = 4 * 480 * 4
    harness.result(audio("modest", 3, 0), *(audio("greedy", 3, seq) for seq in range(4)))
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code) == ("greedy", "overloaded")
    assert harness.say(wire.Credit("modest", 1)) == [audio("modest", 3, 0)]


@pytest.mark.parametrize("grants", [[2**32 - 1] * 3])
def test_credit_without_measure_is_bounded(grants: list[int]) -> None:
    harness = Harness()
    worker = harness.worker("encode", 1, credit=0)
    harness.control(worker, *(wire.Grant(1, credit) for credit in grants))
    (status,) = harness.say(wire.GetStatus(1))
    assert isinstance(status, wire.Status)
    assert status.workers[0].credit == 1 << 20
