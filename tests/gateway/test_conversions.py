"""A recording said again in another voice."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import requests

from lighttts.gateway.body import TEXTS_MAX_BYTES
from lighttts.transport.wire import MAX_AUDIO_FILE, Convert
from tests.client.fake_broker import FakeBroker
from tests.gateway.process import Gateway

PATH = "/v1/audio/conversions"


def test_a_recording_comes_back_in_a_preset_voice(gateway: Gateway, prompt_wav: bytes) -> None:
    data = {"voice": "tiny-voice", "response_format": "pcm"}
    with requests.post(gateway.url + PATH, data=data, files={"file": prompt_wav}, stream=True) as response:
        assert response.status_code == 200, response.text
        assert response.headers["transfer-encoding"] == "chunked"
        samples = np.frombuffer(b"".join(response.iter_content(4096)), "<i2")
    assert len(samples) % 960 == 0
    assert np.abs(samples.astype(int)).max() > 0


def test_it_comes_in_the_voice_of_a_prompt_and_as_mp3_when_nothing_is_said(gateway: Gateway, prompt_wav: bytes) -> None:
    response = requests.post(gateway.url + PATH, files={"file": prompt_wav, "prompt": prompt_wav})
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/mpeg")
    with av.open(io.BytesIO(response.content)) as container:
        assert container.format.name == "mp3"


def test_events_carry_it_too(gateway: Gateway, prompt_wav: bytes) -> None:
    data = {"voice": "tiny-voice", "stream_format": "sse"}
    response = requests.post(gateway.url + PATH, data=data, files={"file": prompt_wav})
    assert '"type": "speech.audio.done"' in response.text.splitlines()[-2]


def test_voice_speed_and_recordings_reach_the_broker() -> None:
    with FakeBroker() as broker, Gateway(broker.endpoint) as gateway:
        files = {"file": b"what is said", "prompt": b"whose voice"}
        assert requests.post(gateway.url + PATH, data={"speed": "1.5"}, files=files).status_code == 200
        asked = broker.wait_for(Convert)
        assert (asked.source, asked.prompt, asked.speed) == (b"what is said", b"whose voice", 1.5)
        assert requests.post(gateway.url + PATH, data={"voice": "june"}, files={"file": b"x"}).status_code == 200
        assert broker.wait_for(Convert, 2).voice == "june"


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({}, {"prompt": b"RIFF"}, 422, "file"),
        ({}, {"file": b"no audio"}, 400, "file"),
        ({}, {"file": b""}, 400, "file"),
        ({"voice": "tiny-voice"}, {"file": None, "prompt": None}, 400, "voice"),
        ({"voice": "nobody"}, {"file": None}, 400, "voice"),
        ({"speed": "9"}, {"file": None}, 400, "speed"),
        ({"model": "whisper-1"}, {"file": None}, 404, "model"),
        ({"sped": "1"}, {"file": None}, 400, "sped"),
        ({"prompt": "no file"}, {"file": None}, 422, "prompt"),
        ({}, {"file": b"0" * (2 * MAX_AUDIO_FILE + TEXTS_MAX_BYTES)}, 413, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_told_as_openai_tells_it(
    gateway: Gateway, prompt_wav: bytes, data: dict[str, str], files: dict[str, Any], status: int, param: str | None
) -> None:
    sent = {name: prompt_wav if content is None else content for name, content in files.items()}
    response = requests.post(gateway.url + PATH, data=data, files=sent)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
