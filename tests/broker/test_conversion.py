"""A conversion goes from the encode stage to the decode stage, and is otherwise a request like any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.broker.instructions import Metric
from lighttts.broker.outbox import Channel
from lighttts.broker.requests import PATHS
from lighttts.broker.state import Saved
from lighttts.transport import wire
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, audio, convert, encoded, mel, source, synth, tokens

ALIVE = [(b"encode-1", 1), (b"decode-3", 3)]


@pytest.fixture
def harness() -> Harness:
    """A core that has no llm worker: encode (epoch 1) and decode (3)."""
    harness = Harness(wall=lambda: 1_000_000.0)
    harness.worker("encode", 1)
    harness.worker("decode", 3)
    return harness


def whole(attempt: int = 0, count: int = 25) -> wire.Tokens:
    """What a decode worker is given: all tokens of the source, as one sentence."""
    return wire.Tokens("r1", attempt, 1, 0, 0, final=True, last=True, tokens=np.arange(count, dtype=np.int32))


def decode_work(result: wire.Encoded, **changes: object) -> wire.DecodeWork:
    voice = (result.voice_key, result.voice_tokens, result.voice_mel, result.voice_embedding)
    work = wire.DecodeWork("r1", 0, 7, 1.0, "audio", "f32", 0, 0, 0, 0, 0, 0, *voice, recorded=True)
    return replace(work, **changes)


def error(messages: list[wire.Message]) -> wire.Error:
    """The one error among them."""
    (message,) = (message for message in messages if isinstance(message, wire.Error))
    return message


def test_speech_goes_in_and_speech_comes_out_without_an_llm_worker(harness: Harness) -> None:
    assert harness.say(convert(speed=1.5, sample_type="s16")) == [wire.Accepted("r1", SAMPLE_RATE)]
    assert harness.take(b"encode-1") == [wire.ConvertWork("r1", 0, "anna", b"", b"RIFF")]
    result = source("r1", 1)
    harness.result(result)
    assert harness.take(b"decode-3") == [decode_work(result, speed=1.5, sample_type="s16"), whole()]
    frames = [audio("r1", 3, 0), audio("r1", 3, 1, last=True)]
    harness.result(*frames)
    assert harness.take(CLIENT) == [*frames, wire.End("r1", frames=2, tokens=25, sentences=1)]
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_an_llm_worker_is_never_asked() -> None:
    harness = Harness()
    harness.stack()
    harness.say(convert())
    harness.result(source("r1", 1))
    assert harness.take(b"llm-2") == []
    harness.result(tokens("r1", 2, 0))
    assert harness.counted[Metric.REFUSED, "stale_epoch"] == 1


def test_mel_may_be_asked_for(harness: Harness) -> None:
    harness.say(convert(output="mel"))
    harness.result(source("r1", 1), mel("r1", 3, 0, last=True))
    assert harness.take(CLIENT) == [mel("r1", 3, 0, last=True), wire.End("r1", 1, 25, 1)]


def test_every_kind_of_request_and_output_has_its_path() -> None:
    outputs = {cls: dict(cls.FIELDS)["output"].values for cls in (wire.Synth, wire.Convert)}  # type: ignore[attr-defined]
    assert PATHS.keys() == {(cls, output) for cls, values in outputs.items() for output in values}


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"source": b""}, "source"), ({"voice": ""}, "voice"), ({"prompt": b"RIFF"}, "voice")],
)
def test_what_makes_no_conversion_is_refused_by_field(harness: Harness, changes: dict[str, object], field: str) -> None:
    refused = error(harness.say(convert(**changes)))
    assert (refused.request_id, refused.code, refused.field) == ("r1", "invalid_input", field)
    assert harness.free


def test_source_and_prompt_count_as_audio_held_until_they_are_encoded(harness: Harness) -> None:
    harness.core._board.prompts.limit = 10
    harness.say(convert("r1", voice="", prompt=b"123", source=b"1234"))
    assert harness.core._board.prompts.used == 7
    assert error(harness.say(convert("r2", source=b"1234"))).code == "overloaded"
    harness.result(source("r1", 1))
    assert harness.core._board.prompts.used == 0
    assert harness.core._board.requests.live["r1"].asked == convert("r1", voice="", source=b"")


@pytest.mark.parametrize(
    "result",
    [encoded("r1", 1), source("r1", 1, count=0), replace(source("r1", 1), lengths=(3,))],
    ids=["text", "no tokens", "both"],
)
def test_a_result_that_is_none_of_a_conversion_ends_it(harness: Harness, result: wire.Encoded) -> None:
    harness.say(convert())
    harness.result(result)
    assert error(harness.take(CLIENT)).code == "worker_failed"


def test_a_conversions_result_for_a_text_ends_that() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(source("r1", 1))
    assert error(harness.take(CLIENT)).code == "worker_failed"


@pytest.mark.parametrize("encoded_", [False, True], ids=["encoding", "decoding"])
def test_a_cancel_reaches_whoever_has_it(harness: Harness, encoded_: bool) -> None:
    harness.say(convert())
    if encoded_:
        harness.result(source("r1", 1))
    for worker in (b"encode-1", b"decode-3"):
        harness.take(worker)
    harness.say(wire.Cancel("r1"))
    assert harness.take(b"decode-3" if encoded_ else b"encode-1") == [wire.Abort("r1", 0)]
    harness.say(wire.EndAck("r1"))
    assert harness.free


@pytest.mark.parametrize("encoded_", [False, True], ids=["encoding", "decoding"])
def test_the_deadline_holds_in_each_of_its_stages(harness: Harness, encoded_: bool) -> None:
    harness.say(convert(deadline_ms=2000))
    if encoded_:
        harness.result(source("r1", 1))
    harness.pass_time(2.5, alive=ALIVE)
    assert error(harness.take(CLIENT)).code == "deadline_exceeded"


def test_frames_wait_for_credit(harness: Harness) -> None:
    harness.say(convert(credit=1))
    harness.result(source("r1", 1), *(audio("r1", 3, seq, last=seq == 2) for seq in range(3)))
    assert harness.take(CLIENT) == [audio("r1", 3, 0)]
    assert harness.say(wire.Credit("r1", 1)) == [audio("r1", 3, 1)]
    assert harness.say(wire.Credit("r1", 1)) == [audio("r1", 3, 2, last=True), wire.End("r1", 3, 25, 1)]


def test_without_a_decode_worker_it_waits_and_ends_with_no_worker() -> None:
    harness = Harness(no_worker_s=3.0)
    harness.worker("encode", 1)
    harness.say(convert())
    harness.result(source("r1", 1))
    harness.pass_time(4.0, alive=ALIVE[:1])
    assert error(harness.take(CLIENT)).code == "no_worker"


def test_another_encode_worker_gets_the_source(harness: Harness) -> None:
    harness.say(convert())
    harness.worker("encode", 11)
    harness.carry_out(harness.core.gone(Channel.WORKERS, b"encode-1", harness.now))
    assert harness.take(b"encode-11") == [wire.ConvertWork("r1", 1, "anna", b"", b"RIFF")]


def test_another_decode_worker_goes_on_behind_what_was_heard(harness: Harness) -> None:
    harness.say(convert())
    result = source("r1", 1)
    harness.result(result, audio("r1", 3, 0))
    harness.worker("decode", 13)
    harness.carry_out(harness.core.gone(Channel.WORKERS, b"decode-3", harness.now))
    assert harness.take(b"decode-13") == [decode_work(result, attempt=1, seq=1, skip=480), whole(attempt=1)]
    harness.result(replace(audio("r1", 13, 1, last=True), attempt=1))
    assert [type(message) for message in harness.take(CLIENT)[-2:]] == [wire.Audio, wire.End]


@pytest.mark.parametrize("done", [False, True], ids=["not encoded", "encoded"])
def test_another_broker_goes_on_with_it(harness: Harness, done: bool) -> None:
    result = source("r1", 77)
    record = Saved(CLIENT, wire.encode(convert()), "", wire.encode(result) if done else (), {}, 1_000_000.0 - 5)
    harness.say(wire.Resume("r1", True, 1, 480, 50))
    harness.carry_out(harness.core.fetched("r1", record, harness.now))
    if not done:
        (work,) = harness.take(b"encode-1")
        assert work == wire.ConvertWork("r1", 0, "anna", b"", b"RIFF")
        result = source("r1", 1)
        harness.result(result)
    work, fed = harness.take(b"decode-3")
    assert work == decode_work(result, seq=1, skip=480)
    assert isinstance(fed, wire.Tokens)
    assert (fed.tokens.tolist(), fed.last) == ([*range(25)], True)
    harness.result(audio("r1", 3, 1, last=True))
    assert harness.take(CLIENT)[-1] == wire.End("r1", 2, 25, 1)


def test_it_is_stored_as_it_was_asked_for_and_counted(harness: Harness) -> None:
    harness.say(convert())
    assert wire.decode(harness.store.requests["r1"].synth) == convert()
    assert harness.counted[Metric.REQUESTS, "conversion"] == 1
