"""What is refused at the door, and how."""

from __future__ import annotations

import pytest

from lighttts.errors import ProtocolError
from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, audio, encoded, raw, synth, tokens

PROMPT = b"RIFF"


def refusal(messages: list[Message]) -> wire.Error:
    """The one error among `messages`."""
    (error,) = messages
    assert isinstance(error, wire.Error)
    return error


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"text": ""}, "text", "empty"),
        ({"text": " \n\t\u3000"}, "text", "empty"),
        ({"text": "x" * 101}, "text", "has 101 characters, the limit is 100"),
        ({"voice": ""}, "voice", "voice's name or a prompt"),
        ({"prompt": PROMPT}, "voice", "not both"),
        ({"prompt_text": "Hi."}, "prompt_text", "give the prompt too"),
        ({"voice": "", "prompt": PROMPT, "prompt_text": "Hi.", "instruct": "Low."}, "instruct", "not both"),
        ({"voice": "", "prompt": PROMPT, "prompt_text": "x" * 101}, "prompt_text", "limit is 100"),
    ],
)
def test_input_that_makes_no_request_is_refused_by_field(changes: dict[str, object], field: str, says: str) -> None:
    harness = Harness(max_text=100)
    harness.stack()
    error = refusal(harness.say(synth(**changes)))
    assert (error.request_id, error.code, error.field, error.retryable) == ("r1", "invalid_input", field, False)
    assert says in error.text
    assert harness.free


def test_the_limit_counts_characters_not_bytes() -> None:
    harness = Harness(max_text=100)
    harness.stack()
    assert harness.say(synth(text="語" * 100)) == [wire.Accepted("r1", SAMPLE_RATE)]


def test_a_request_id_is_taken_until_its_request_is_acknowledged() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    assert refusal(harness.say(synth(), client=b"other")).field == "request_id"
    harness.say(wire.Cancel("r1"))
    assert refusal(harness.say(synth(), client=b"other")).field == "request_id"
    harness.say(wire.EndAck("r1"))
    assert harness.say(synth(), client=b"other") == [wire.Accepted("r1", SAMPLE_RATE)]


def test_beyond_the_bound_the_answer_is_overloaded_at_once_with_a_time_to_retry() -> None:
    harness = Harness(max_requests=2)
    harness.stack()
    harness.say(synth("r1"), synth("r2"))
    error = refusal(harness.say(synth("r3")))
    assert (error.request_id, error.code, error.retryable) == ("r3", "overloaded", True)
    assert error.retry_after_ms > 0
    harness.say(wire.Cancel("r1"))
    assert harness.say(synth("r4")) == [wire.Accepted("r4", SAMPLE_RATE)]


def test_prompt_audio_that_waits_is_bounded() -> None:
    harness = Harness()
    harness.core._board.prompts.limit = 10
    harness.say(synth("r1", voice="", prompt=b"1234567"))
    assert refusal(harness.say(synth("r2", voice="", prompt=b"1234"))).code == "overloaded"
    assert harness.say(synth("r3", voice="", prompt=b"123")) == []


def test_a_broker_that_ends_takes_nothing_new_and_finishes_what_it_has() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.core.stop_admitting()
    assert refusal(harness.say(synth("r2"))).code == "unavailable"
    assert not harness.core.idle
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    harness.say(wire.EndAck("r1"))
    assert harness.core.idle


def test_what_a_stopped_broker_still_has_fails_at_client_and_workers() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.take(b"encode-1")
    harness.carry_out(harness.core.abandon(harness.now))
    assert refusal(harness.take(CLIENT)).code == "unavailable"
    assert harness.take(b"encode-1") == [wire.Abort("r1", 0)]
    assert not harness.store.requests


def test_a_client_is_welcomed_with_the_limits() -> None:
    harness = Harness(max_text=123, max_credit=9)
    (welcome,) = harness.say(wire.Hello("me", "test"))
    assert isinstance(welcome, wire.Welcome)
    assert (welcome.broker, welcome.max_text, welcome.max_credit) == ("test", 123, 9)


def test_voices_are_those_of_the_encode_workers() -> None:
    harness = Harness()
    assert harness.say(wire.ListVoices(5)) == [wire.Voices(5, 0, ())]
    harness.worker("encode", 1, voices=("zoe", "anna"))
    harness.worker("encode", 2, voices=("anna", "bob"))
    harness.worker("llm", 3, voices=("not a voice",))
    assert harness.say(wire.ListVoices(6)) == [wire.Voices(6, SAMPLE_RATE, ("anna", "bob", "zoe"))]


def test_status_tells_requests_by_state_and_the_workers() -> None:
    harness = Harness()
    harness.worker("encode", 1, credit=1)
    harness.now += 2.0
    harness.say(synth("r1"), synth("r2"))
    (status,) = harness.say(wire.GetStatus(8))
    worker = wire.WorkerStatus("encode-1", "encode", "model", "ready", credit=0, active=1, age_s=2.0, seen_s=2.0)
    assert status == wire.Status(8, "test", "memory", 2.0, 1, 1, 0, 0, (worker,))
    harness.worker("llm", 2)
    harness.worker("decode", 3)
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), audio("r1", 3, 0, last=True))
    harness.say(wire.Cancel("r2"))
    (status,) = harness.say(wire.GetStatus(8))
    assert isinstance(status, wire.Status)
    assert (status.queued, status.active, status.completed, status.failed) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"GET / HTTP/1.1\r\n"],
        [b"LT\x03\x11", b""],
        [b"LT\x03\x11", b"\xc1"],
        [b"LT\x02\x11", b"\x90"],
        [b"LT\x03\xff", b"\x90"],
        [*raw(synth()), b"one more"],
        raw(synth())[:-1],
    ],
)
def test_what_is_no_message_is_answered_with_an_error_and_counted(frames: list[bytes]) -> None:
    harness = Harness()
    harness.stack()
    harness.carry_out(harness.core.client_message(CLIENT, frames, harness.now))
    error = refusal(harness.take(CLIENT))
    assert (error.request_id, error.code) == ("", ProtocolError.code)
    assert sum(count for (metric, label), count in harness.counted.items() if label == "malformed") == 1
    assert harness.say(synth()) == [wire.Accepted("r1", SAMPLE_RATE)]


@pytest.mark.parametrize(
    "message", [tokens("r1", 2, 0), audio("r1", 3, 0), wire.Grant(1, 5), wire.Accepted("r1", 1), wire.Bye(1)]
)
def test_a_client_that_speaks_as_something_else_is_told_so(message: Message) -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    error = refusal(harness.say(message))
    assert (error.request_id, error.code) == ("", "protocol")
    assert type(message).__name__ in error.text
    assert harness.core.load().workers == {"encode": 1, "llm": 1, "decode": 1}


def test_a_flood_of_garbage_is_one_line_in_the_log() -> None:
    harness = Harness()
    for _ in range(1000):
        harness.carry_out(harness.core.client_message(CLIENT, [b"junk"], harness.now))
        harness.tick(0.001)
    assert [log.event for log in harness.logs] == ["messages refused"]
    harness.tick(10)
    assert harness.logs[-1].fields["count"] == 999
