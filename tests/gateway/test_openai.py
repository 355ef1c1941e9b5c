"""OpenAI's own client library at the gateway's door."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import av
import numpy as np
import openai
import pytest

from lighttts.transport.wire import Synth
from tests.client.fake_broker import FakeBroker
from tests.gateway.process import Gateway

TEXT = "Hello there."
LONG = "The quick brown fox jumps over the lazy dog. It was not amused."
CONTAINERS = {"mp3": "mp3", "opus": "ogg", "aac": "aac", "flac": "flac", "wav": "wav"}


@pytest.fixture
def api(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("name", CONTAINERS)
def test_speech_comes_in_the_format_that_is_asked_for(api: openai.OpenAI, name: str) -> None:
    speech = api.audio.speech.create(model="tts-1", voice="tiny-voice", input=TEXT, response_format=name)
    with av.open(io.BytesIO(speech.content)) as container:
        assert container.format.name == CONTAINERS[name]
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert seconds > 0.1


def test_mp3_is_what_comes_when_nothing_is_said(api: openai.OpenAI) -> None:
    speech = api.audio.speech.create(model="tts-1", voice="tiny-voice", input=TEXT)
    assert speech.response.headers["content-type"] == "audio/mpeg"


def test_pcm_is_raw_int16_as_the_broker_gives_it(api: openai.OpenAI) -> None:
    speech = api.audio.speech.create(model="tts-1", voice="tiny-voice", input=TEXT, response_format="pcm")
    samples = np.frombuffer(speech.content, "<i2")
    assert len(samples) > 0
    assert len(samples) % 960 == 0


def test_audio_is_sent_chunked_as_it_is_made(api: openai.OpenAI) -> None:
    create = api.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="tiny-voice", input=LONG, response_format="pcm") as speech:
        assert speech.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in speech.headers
        assert len([*speech.iter_bytes()]) >= 2


def test_events_carry_the_audio_and_end_with_the_usage(api: openai.OpenAI) -> None:
    create = api.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="tiny-voice", input=LONG, response_format="wav", stream_format="sse") as speech:
        assert speech.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in speech.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    *deltas, done = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert len(deltas) >= 2
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas).startswith(b"RIFF")
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] > 0


def test_speed_voice_and_instructions_reach_the_broker() -> None:
    with (
        FakeBroker() as broker,
        Gateway(broker.endpoint) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as api,
    ):
        api.audio.speech.create(model="tts-1", voice={"id": "june"}, input=TEXT, speed=2.0)
        api.audio.speech.create(model="tts-1", voice="june", input=TEXT, instructions=" Whisper. ")
        first, second = broker.wait_for(Synth), broker.wait_for(Synth, 2)
    assert (first.text, first.voice, first.speed, first.sample_type) == (TEXT, "june", 2.0, "s16")
    assert (first.instruct, second.instruct) == ("", "Whisper.")


def test_instructions_are_spoken_by(api: openai.OpenAI) -> None:
    def speech(**more: str) -> bytes:
        return api.audio.speech.create(model="tts-1", voice="tiny-voice", input=TEXT, **more).content  # type: ignore[arg-type]

    assert speech(response_format="pcm", instructions="In a whisper.")


def test_the_served_model_is_listed_and_can_be_asked_for(api: openai.OpenAI) -> None:
    (model,) = api.models.list().data
    assert model.id == "cosyvoice2-tiny"
    assert api.models.retrieve(model.id) == model
    assert api.audio.speech.create(model=model.id, voice="tiny-voice", input=TEXT).content


def test_the_voices_are_listed(api: openai.OpenAI) -> None:
    answer = api.get("/audio/voices", cast_to=object)
    assert answer == {"voices": [{"id": "tiny-voice", "name": "tiny-voice"}]}


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"voice": "alloy"}, openai.BadRequestError, "voice", "unknown_voice"),
        ({"model": "whisper-1"}, openai.NotFoundError, "model", "model_not_found"),
        ({"input": ""}, openai.BadRequestError, "input", "invalid_input"),
        ({"input": "  "}, openai.BadRequestError, "input", "invalid_input"),
        ({"speed": 4.0}, openai.BadRequestError, "speed", "invalid_input"),
        ({"response_format": "amr"}, openai.BadRequestError, "response_format", "invalid_input"),
        ({"instructions": "<|endofprompt|>"}, openai.BadRequestError, "instructions", "invalid_input"),
        ({"extra_body": {"sped": 1}}, openai.BadRequestError, "sped", "invalid_input"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_refused_in_openai_s_shape(
    api: openai.OpenAI, change: dict[str, object], kind: type[openai.APIStatusError], param: str, code: str
) -> None:
    request = {"model": "tts-1", "voice": "tiny-voice", "input": TEXT, **change}
    with pytest.raises(kind) as caught:
        api.audio.speech.create(**request)  # type: ignore[arg-type]
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.body["message"]
    assert caught.value.request_id
