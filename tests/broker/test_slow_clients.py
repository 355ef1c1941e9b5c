"""A client that takes nothing waits alone, and not for ever."""

from __future__ import annotations

import pytest

from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import CLIENT, Harness, audio, encoded, synth, tokens

ALIVE = ((b"encode-1", 1), (b"llm-2", 2), (b"decode-3", 3))
LIMIT_S = 5.0
QUICK = b"quick"


def streaming(request_id: str = "r1", *, credit: int, client: bytes = CLIENT) -> Harness:
    """A request whose decode worker has all tokens."""
    harness = Harness(slow_client_s=LIMIT_S, no_worker_s=1000)
    harness.stack()
    begin(harness, request_id, credit=credit, client=client)
    return harness


def begin(harness: Harness, request_id: str, *, credit: int, client: bytes = CLIENT) -> None:
    """Brings one more request to where its decode worker has all tokens."""
    harness.say(synth(request_id, credit=credit), client=client)
    harness.result(encoded(request_id, 1), tokens(request_id, 2, 0, last=True))
    for peer in (client, b"decode-3"):
        harness.take(peer)


def heard(harness: Harness, client: bytes = CLIENT) -> list[Message]:
    """What a client was sent, but for probes."""
    return [message for message in harness.take(client) if not isinstance(message, wire.Welcome)]


def wait(harness: Harness, seconds: float) -> None:
    harness.pass_time(seconds, alive=ALIVE)


def test_who_grants_no_credit_while_frames_wait_is_ended_with_a_typed_error() -> None:
    harness = streaming(credit=0)
    harness.result(audio("r1", 3, 0))
    wait(harness, LIMIT_S)
    assert heard(harness) == []
    wait(harness, 0.5)
    (error,) = heard(harness)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code, error.retryable) == ("r1", "slow_client", False)
    assert wire.Abort("r1", 0) in harness.take(b"decode-3")
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_who_reads_nothing_is_ended_although_there_is_credit() -> None:
    harness = streaming(credit=100)
    harness.full.add(CLIENT)
    harness.result(audio("r1", 3, 0))
    wait(harness, LIMIT_S + 0.5)
    assert not harness.core._board.requests.live
    assert wire.Abort("r1", 0) in harness.take(b"decode-3")


def test_one_that_waits_for_its_last_frames_to_be_taken_is_ended_too() -> None:
    harness = streaming(credit=0)
    harness.result(audio("r1", 3, 0, last=True))
    wait(harness, LIMIT_S + 0.5)
    (error,) = heard(harness)
    assert isinstance(error, wire.Error)
    assert error.code == "slow_client"


def test_whoever_takes_a_frame_now_and_then_is_slow_but_served() -> None:
    harness = streaming(credit=0)
    made = [audio("r1", 3, seq, last=seq == 5) for seq in range(6)]
    harness.result(*made)
    taken: list[Message] = []
    for _ in made:
        wait(harness, LIMIT_S - 0.5)
        taken += heard(harness) + harness.say(wire.Credit("r1", 1))
    assert [message for message in taken if not isinstance(message, wire.Welcome)] == [*made, wire.End("r1", 6, 25, 1)]


def test_whoever_has_nothing_to_take_is_not_slow() -> None:
    harness = streaming(credit=0)
    wait(harness, 3 * LIMIT_S)
    assert heard(harness) == []
    assert harness.core._board.requests.live


def test_a_slow_client_delays_no_other_of_the_same_or_another_client() -> None:
    harness = streaming("slow", credit=0)
    begin(harness, "mine", credit=100)
    begin(harness, "other", credit=100, client=QUICK)
    harness.result(*(audio("slow", 3, seq) for seq in range(3)))
    for request_id, client in (("mine", CLIENT), ("other", QUICK)):
        made = [audio(request_id, 3, seq, last=seq == 2) for seq in range(3)]
        harness.result(*made)
        assert heard(harness, client) == [*made, wire.End(request_id, 3, 25, 1)]
        harness.say(wire.EndAck(request_id), client=client)
    wait(harness, LIMIT_S + 0.5)
    (error,) = heard(harness)
    assert isinstance(error, wire.Error)
    assert error.request_id == "slow"


def test_when_memory_runs_out_a_request_that_waits_only_to_be_read_gives_way_before_one_that_is_read() -> None:
    harness = streaming("unread", credit=100)
    begin(harness, "read", credit=100, client=QUICK)
    harness.full.add(CLIENT)
    harness.result(*(audio("unread", 3, seq, last=seq == 3) for seq in range(4)))
    harness.core._board.output.limit = harness.core.load().held_bytes + 1
    frame = audio("read", 3, 0)
    harness.result(frame)
    assert heard(harness, QUICK) == [frame]
    harness.full.clear()
    harness.tick()
    (error,) = heard(harness)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code) == ("unread", "overloaded")
    harness.say(wire.EndAck("unread"))
    assert harness.core.load().held_bytes == 0


def test_a_worker_that_makes_tokens_without_end_fails_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.broker.token_log.MOST", 100)
    for count, messages in ((25, 5), (0, 101)):
        harness = Harness()
        harness.stack()
        harness.say(synth())
        harness.result(encoded("r1", 1), *(tokens("r1", 2, seq, count=count) for seq in range(messages - 1)))
        assert not any(isinstance(message, wire.Error) for message in heard(harness))
        harness.result(tokens("r1", 2, messages - 1, count=count))
        (error,) = heard(harness)
        assert isinstance(error, wire.Error)
        assert error.code == "worker_failed"


def test_what_waited_for_a_slow_client_is_freed() -> None:
    harness = streaming(credit=0)
    harness.result(*(audio("r1", 3, seq) for seq in range(20)))
    assert harness.core.load().held_bytes > 20 * 480
    wait(harness, LIMIT_S + 0.5)
    assert harness.core.load().held_bytes == 0
