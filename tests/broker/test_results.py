"""Results are checked against the worker that has the request: what does not fit is dropped or fails the request."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest

from lighttts.broker.instructions import Metric
from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import CLIENT, Harness, audio, encoded, mel, raw, synth, tokens


@pytest.fixture
def stack() -> Harness:
    """A core with one worker of each stage (epochs 1, 2, 3) and a request r1 of which all tokens are made."""
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True))
    for peer in (CLIENT, b"encode-1", b"llm-2", b"decode-3"):
        harness.take(peer)
    return harness


def assert_worker_failed(harness: Harness, holder: bytes) -> None:
    """The client is told to try again, and the worker to drop the request."""
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code, error.retryable) == ("r1", "worker_failed", True)
    assert harness.take(holder) == [wire.Abort("r1", 0)]
    harness.say(wire.EndAck("r1"))
    assert harness.free


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (audio("r1", 99, 0), "stale_epoch"),
        (audio("r1", 2, 0), "stale_epoch"),
        (replace(audio("r1", 3, 0), attempt=1), "stale_attempt"),
        (audio("r2", 3, 0), "unknown"),
        (tokens("r1", 2, 1), "stale_epoch"),
        (encoded("r1", 1), "stale_epoch"),
        (wire.StageFailed("r1", 0, 99, "internal", "", "", False), "stale_epoch"),
        (wire.StageFailed("r1", 1, 3, "internal", "", "", False), "stale_attempt"),
        (wire.StageFailed("r2", 0, 3, "internal", "", "", False), "unknown"),
    ],
)
def test_a_frame_of_another_time_is_dropped_and_counted(stack: Harness, frame: Message, why: str) -> None:
    stack.result(frame)
    assert stack.take(CLIENT) == []
    assert stack.counted[Metric.REFUSED, why] == 1
    stack.result(audio("r1", 3, 0, last=True))
    assert stack.take(CLIENT) == [audio("r1", 3, 0, last=True), wire.End("r1", 1, 25, 1)]


def test_a_worker_that_works_for_nobody_is_told_once(stack: Harness) -> None:
    stack.result(audio("gone", 3, 0), audio("gone", 3, 1))
    assert stack.take(b"decode-3") == [wire.Abort("gone", 0)]


def test_frames_under_way_when_a_request_was_cancelled_are_dropped_without_another_abort(stack: Harness) -> None:
    stack.say(wire.Cancel("r1"), wire.EndAck("r1"))
    assert stack.take(b"decode-3") == [wire.Abort("r1", 0)]
    stack.result(audio("r1", 3, 0), audio("r1", 3, 1, last=True))
    assert stack.take(b"decode-3") == []
    assert stack.take(CLIENT) == []
    assert stack.free


@pytest.mark.parametrize("seqs", [[1], [0, 2], [0, 0], [0, 1, 0]])
def test_a_gap_or_a_repeat_in_audio_ends_the_request(stack: Harness, seqs: list[int]) -> None:
    stack.result(*(audio("r1", 3, seq) for seq in seqs))
    good = stack.mail[CLIENT][: len(seqs) - 1]
    stack.mail[CLIENT] = stack.mail[CLIENT][len(good) :]
    assert [wire.decode(frames) for frames in good] == [audio("r1", 3, seq) for seq in seqs[:-1]]
    assert_worker_failed(stack, b"decode-3")


def test_a_gap_in_tokens_ends_the_request(stack: Harness) -> None:
    stack.say(synth("r2"))
    stack.result(encoded("r2", 1), tokens("r2", 2, 1))
    assert [type(message) for message in stack.take(CLIENT)] == [wire.Error]
    assert stack.take(b"llm-2")[-1] == wire.Abort("r2", 0)


def test_the_wrong_kind_of_output_ends_the_request(stack: Harness) -> None:
    stack.result(mel("r1", 3, 0))
    assert_worker_failed(stack, b"decode-3")


def test_a_decoder_that_ends_before_the_tokens_do_ends_the_request() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1), tokens("r1", 2, 0))
    for peer in (CLIENT, b"decode-3"):
        harness.take(peer)
    harness.result(audio("r1", 3, 0, last=True))
    assert_worker_failed(harness, b"decode-3")


def test_an_encoding_that_contradicts_itself_ends_the_request() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.take(b"encode-1")
    harness.result(replace(encoded("r1", 1), lengths=(2, 2)))
    assert [type(message) for message in harness.take(CLIENT)] == [wire.Error]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"LT\x03\x32"],
        [b"LT\x03\x32", b"\xc1", b""],
        [b"LT\x03\x32", msgpack.packb([1, 2]), b""],
        [b"LT\x04\x32", *raw(audio("r1", 3, 0))[1:]],
        raw(wire.Register("w", 3, "llm", "", "", 1, ())),
        raw(encoded("r1", 1))[:-1],
    ],
)
def test_what_is_no_result_is_counted_and_harms_nobody(stack: Harness, frames: list[bytes]) -> None:
    stack.carry_out(stack.core.result(frames, stack.now))
    assert stack.counted[Metric.REFUSED, "malformed"] == 1
    stack.result(audio("r1", 3, 0))
    assert stack.take(CLIENT) == [audio("r1", 3, 0)]


BODY = ["r1", 0, 3, 0, 0, False, 0, 25, ["f4", 4]]
NONSENSE = [
    (5, "yes"),
    (5, 1),
    (8, 4),
    (8, ["f4"]),
    (8, ["f4", "4"]),
    (8, ["f4", -1]),
]


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_a_frame_that_makes_no_sense_ends_its_request(stack: Harness, field: int, value: object) -> None:
    body = [*BODY[:field], value, *BODY[field + 1 :]]
    stack.carry_out(stack.core.result([b"LT\x03\x32", msgpack.packb(body), bytes(16)], stack.now))
    assert_worker_failed(stack, b"decode-3")


@pytest.mark.parametrize("payloads", [[], [b"", b""]])
def test_a_frame_without_its_one_payload_ends_its_request(stack: Harness, payloads: list[bytes]) -> None:
    stack.carry_out(stack.core.result([b"LT\x03\x32", msgpack.packb(BODY), *payloads], stack.now))
    assert_worker_failed(stack, b"decode-3")


@pytest.mark.parametrize("cut", [0, 4])
def test_a_result_that_cannot_be_read_ends_its_request_if_it_names_one(cut: int) -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    for peer in (CLIENT, b"encode-1"):
        harness.take(peer)
    frames = raw(encoded("r1", 1))
    harness.carry_out(harness.core.result([*frames[:-2], frames[-2][:cut], frames[-1]], harness.now))
    assert_worker_failed(harness, b"encode-1")


@pytest.mark.parametrize("request_id", [None, 5, ["r1"], {}, b"r1"])
def test_a_frame_of_no_request_is_dropped(stack: Harness, request_id: object) -> None:
    frames = [b"LT\x03\x32", msgpack.packb([request_id, *BODY[1:]]), bytes(16)]
    stack.carry_out(stack.core.result(frames, stack.now))
    assert stack.take(CLIENT) == []
    assert sum(stack.counted[Metric.REFUSED, why] for why in ("unknown", "malformed")) == 1


def test_a_stage_that_fails_twice_tells_the_client_why_and_the_other_stages_to_stop() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1), tokens("r1", 2, 0))
    for peer in (CLIENT, b"llm-2", b"decode-3"):
        harness.take(peer)
    for attempt in range(2):
        harness.result(wire.StageFailed("r1", attempt, 3, "worker_failed", "the GPU is out of memory", "", True))
    assert harness.take(CLIENT) == [wire.Error("r1", "worker_failed", "the GPU is out of memory", "", True, 0)]
    assert harness.take(b"llm-2") == [wire.Abort("r1", 0)]
    assert [type(message) for message in harness.take(b"decode-3")] == [wire.DecodeWork, wire.Tokens]
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_bad_input_that_only_a_stage_can_see_reaches_the_client_with_its_code_and_field() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth(voice="nobody"))
    harness.result(wire.StageFailed("r1", 0, 1, "unknown_voice", "no voice nobody", "voice", False))
    assert harness.take(CLIENT) == [wire.Error("r1", "unknown_voice", "no voice nobody", "voice", False, 0)]
    assert harness.counted[Metric.FAILURES, "unknown_voice"] == 1


def test_results_show_that_a_worker_lives(stack: Harness) -> None:
    for seq in range(6):
        stack.tick(1.0)
        stack.result(audio("r1", 3, seq, samples=1))
    assert stack.core.load().workers == {"encode": 0, "llm": 0, "decode": 1}
    assert np.concatenate([m.samples for m in stack.take(CLIENT) if isinstance(m, wire.Audio)]).size == 6
