"""The encode worker's stage on the tiny reference model."""

from __future__ import annotations

import functools
import hashlib
import io

import numpy as np
import pytest
import soundfile
from prometheus_client import REGISTRY
from safetensors.numpy import load_file

from lighttts.frontend.encode import ConvertJob, EncodeEngine, EncodeJob
from lighttts.transport import wire
from lighttts.workers.encode import EncodeStage
from lighttts.workers.stage import Result, Work
from tests.workers.golden import GOLDEN, VOICE, directory, encode_engine, give

TEXT = "Hello there, general. How are you today?"


def encode_work(
    request_id: str,
    text: str = TEXT,
    *,
    voice: str = VOICE,
    prompt: bytes = b"",
    prompt_text: str = "",
    instruct: str = "",
) -> wire.EncodeWork:
    return wire.EncodeWork(request_id, 2, text, voice, prompt_text, prompt, instruct)


@functools.cache
def prompt_file() -> bytes:
    """One file for all: a float WAV carries the second in which it was written."""
    file = io.BytesIO()
    wave = load_file(GOLDEN / "frontend" / "features.safetensors")["wav24k"].reshape(-1)
    soundfile.write(file, wave, 24_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def stage(engine: EncodeEngine | None = None) -> EncodeStage:
    return EncodeStage(engine or encode_engine(), epoch=9, capacity=4)


def run(stage: EncodeStage, *works: wire.EncodeWork | wire.ConvertWork | wire.CheckWork) -> list[Result]:
    for work in works:
        give(stage, work)
    results = []
    while stage.busy:
        results += stage.step()
    return results


def hit_rate() -> float | None:
    return REGISTRY.get_sample_value("light_tts_cache_hit_rate", {"cache_type": "voice"})


@pytest.mark.parametrize(
    ("voice", "prompt", "prompt_text", "instruct"),
    [
        (VOICE, b"", "", ""),
        ("", prompt_file(), "what is said", ""),
        ("", prompt_file(), "", ""),
        ("", prompt_file(), "", "in a whisper"),
    ],
    ids=["preset", "zero_shot", "cross_lingual", "instruct"],
)
def test_the_message_holds_what_the_engine_made(voice: str, prompt: bytes, prompt_text: str, instruct: str) -> None:
    work = encode_work("a", voice=voice, prompt=prompt, prompt_text=prompt_text, instruct=instruct)
    (result,) = run(stage(), work)
    expected = encode_engine().encode(EncodeJob(TEXT, voice, prompt, prompt_text, instruct))
    message = result.message
    assert result.ends
    assert isinstance(message, wire.Encoded)
    assert (message.request_id, message.attempt, message.epoch) == ("a", 2, 9)
    assert message.lengths == tuple(len(sentence.ids) for sentence in expected.sentences)
    np.testing.assert_array_equal(message.text_ids, np.concatenate([s.ids for s in expected.sentences]))
    np.testing.assert_array_equal(message.prompt_text_ids, expected.prompt_text_ids)
    np.testing.assert_array_equal(message.llm_prompt_tokens, expected.llm_prompt_tokens)
    np.testing.assert_array_equal(message.voice_tokens, expected.voice.tokens)
    np.testing.assert_array_equal(message.voice_mel, expected.voice.mel)
    np.testing.assert_array_equal(message.voice_embedding, expected.voice.embedding)
    assert message.voice_key == expected.voice.key
    assert wire.decode([bytes(frame) for frame in wire.encode(message)]) == message


@pytest.mark.parametrize(("voice", "prompt"), [(VOICE, b""), ("", prompt_file())], ids=["preset", "prompt"])
def test_a_conversion_has_the_sources_tokens_the_voice_and_no_text(voice: str, prompt: bytes) -> None:
    (result,) = run(stage(), wire.ConvertWork("a", 2, voice, prompt, prompt_file()))
    expected = encode_engine().convert(ConvertJob(prompt_file(), voice, prompt))
    message = result.message
    assert result.ends
    assert isinstance(message, wire.Encoded)
    assert (message.request_id, message.attempt, message.epoch) == ("a", 2, 9)
    np.testing.assert_array_equal(message.source_tokens, expected.tokens)
    np.testing.assert_array_equal(message.voice_tokens, expected.voice.tokens)
    np.testing.assert_array_equal(message.voice_mel, expected.voice.mel)
    np.testing.assert_array_equal(message.voice_embedding, expected.voice.embedding)
    assert message.voice_key == expected.voice.key
    assert not message.lengths
    assert not len(message.text_ids)
    assert wire.decode([bytes(frame) for frame in wire.encode(message)]) == message


def test_requests_are_encoded_in_the_order_they_came() -> None:
    results = run(stage(), *(encode_work(name) for name in "abc"))
    assert [result.work.request_id for result in results] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (encode_work("bad", voice="nobody"), "unknown_voice"),
        (encode_work("bad", text=" "), "invalid_input"),
        (encode_work("bad", voice="", prompt=b"no audio"), "invalid_input"),
        (wire.ConvertWork("bad", 2, VOICE, b"", b"no audio"), "invalid_input"),
    ],
)
def test_a_request_that_is_wrong_is_answered_with_its_error_and_the_next_is_encoded(
    work: wire.EncodeWork | wire.ConvertWork, code: str
) -> None:
    bad, good = run(stage(), work, encode_work("good"))
    assert isinstance(bad.message, wire.StageFailed)
    assert (bad.ends, bad.message.code, bad.message.retryable) == (True, code, False)
    assert isinstance(good.message, wire.Encoded)


def test_a_defect_of_one_request_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EncodeEngine(directory())
    encode = engine.encode

    def breaks(job: EncodeJob) -> object:
        if job.text == "breaks":
            raise ZeroDivisionError
        return encode(job)

    monkeypatch.setattr(engine, "encode", breaks)
    bad, good = run(stage(engine), encode_work("bad", "breaks"), encode_work("good"))
    assert isinstance(bad.message, wire.StageFailed)
    assert bad.message.code == "worker_failed"
    assert "ZeroDivisionError" in bad.message.text
    assert isinstance(good.message, wire.Encoded)


def test_an_aborted_request_is_not_encoded() -> None:
    worker = stage()
    give(worker, encode_work("a"))
    give(worker, encode_work("b"))
    assert worker.waiting == 2
    worker.abort(Work("a", 2))
    assert [result.work.request_id for result in run(worker)] == ["b"]


def test_the_same_request_of_two_brokers_is_two_requests() -> None:
    worker = stage()
    for seat in (0, 1, 2):
        give(worker, encode_work("a"), seat)
    worker.abort(Work("a", 2, 1))
    assert [result.work for result in run(worker)] == [Work("a", 2, 0), Work("a", 2, 2)]


def test_prompts_heard_before_come_from_the_cache_and_the_gauge_says_how_many() -> None:
    worker = stage(EncodeEngine(directory()))
    run(worker, *(encode_work(name, voice="", prompt=prompt_file()) for name in "abcd"))
    worker.observe()
    assert hit_rate() == 0.75


def check_work(prompt: bytes, text: str = "What I say.") -> wire.CheckWork:
    return wire.CheckWork("check", 2, prompt, text)


def lookups(result: str) -> float:
    labels = {"cache_type": "voice", "result": result}
    return REGISTRY.get_sample_value("light_tts_cache_lookups_total", labels) or 0.0


def fresh_engine() -> EncodeEngine:
    return EncodeEngine(directory(), 1 << 20)


def test_a_voice_to_be_registered_is_checked_and_its_features_are_kept() -> None:
    engine = fresh_engine()
    (result,) = run(stage(engine), check_work(prompt_file()))
    message = result.message
    assert result.ends
    assert isinstance(message, wire.Encoded)
    assert message.lengths == ()
    encoded = engine.encode(EncodeJob("Hi.", prompt_audio=prompt_file(), prompt_text="What I say."))
    assert message.voice_key == encoded.voice.key
    assert engine.cache.hits == 1


def test_a_recording_that_cannot_be_used_is_refused_as_in_a_request() -> None:
    prompt = b"RIFF and nothing more"
    check, request = run(stage(), check_work(prompt), encode_work("a", voice="", prompt=prompt))
    assert isinstance(check.message, wire.StageFailed)
    assert isinstance(request.message, wire.StageFailed)
    assert (check.message.code, check.message.text) == (request.message.code, request.message.text)


def test_a_text_that_a_prompt_cannot_have_is_refused_too() -> None:
    (result,) = run(stage(), check_work(prompt_file(), "... !"))
    assert isinstance(result.message, wire.StageFailed)
    assert result.message.field == "prompt_text"


def test_a_removed_voice_is_forgotten() -> None:
    engine = fresh_engine()
    encoding = stage(engine)
    run(encoding, check_work(prompt_file()))
    encoding.forget(wire.Forget(hashlib.sha256(prompt_file()).hexdigest(), ()))
    assert engine.cache.size == 0


def test_look_ups_are_counted_by_result() -> None:
    engine, before = fresh_engine(), (lookups("hit"), lookups("miss"))
    encoding = stage(engine)
    run(encoding, *[check_work(prompt_file())] * 3)
    encoding.observe()
    encoding.observe()
    assert (lookups("hit"), lookups("miss")) == (before[0] + 2, before[1] + 1)
