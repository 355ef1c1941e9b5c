"""Programs written for ModelTC's LightTTS and for CosyVoice's FastAPI server: what they send, and how they read it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import requests
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.gateway.process import Gateway

TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."


def samples(response: requests.Response) -> np.ndarray:
    """What both servers' clients make of an answer."""
    assert response.status_code == 200, response.text
    content = b"".join(response.iter_content(chunk_size=4096))
    assert len(content) % 2 == 0
    return np.frombuffer(content, dtype=np.int16)


def file_of(wav: bytes) -> dict[str, tuple[str, io.BytesIO, str]]:
    return {"prompt_wav": ("sample.wav", io.BytesIO(wav), "audio/wav")}


@pytest.mark.parametrize("stream", [True, False])
def test_lighttts_zero_shot(gateway: Gateway, prompt_wav: bytes, stream: bool) -> None:
    data = {"tts_text": TEXT, "prompt_text": "hello world", "stream": stream}
    with requests.post(
        f"{gateway.url}/inference_zero_shot", files=file_of(prompt_wav), data=data, stream=True
    ) as response:
        audio = samples(response)
    assert len(audio) > 0
    assert np.abs(audio.astype(int)).max() > 0


def test_lighttts_s_load_test_has_a_slash_behind_the_path(gateway: Gateway, prompt_wav: bytes) -> None:
    def ask(number: int) -> tuple[int, bool]:
        data = {"tts_text": TEXT, "prompt_text": "hello world", "stream": True}
        url = f"{gateway.url}/inference_zero_shot/"
        audio, first = bytearray(), False
        with requests.post(url, files=file_of(prompt_wav), data=data, stream=True) as response:
            for chunk in response.iter_content(chunk_size=4096):
                first = first or bool(chunk)
                audio.extend(chunk)
        return len(audio), first

    with ThreadPoolExecutor(4) as pool:
        for length, first in pool.map(ask, range(4)):
            assert first
            assert length / 2 / 24000 > 0


def test_lighttts_bistream_example(gateway: Gateway, prompt_wav: bytes) -> None:
    """Sends and receives at the same time, as LightTTS's example does, until the server closes the connection."""
    pieces = ["The quick brown fox, ", "which had a gift, jumps", " over the lazy dog.", " Then it laughs."]

    async def talk() -> bytearray:
        audio = bytearray()
        async with connect(f"{gateway.url.replace('http', 'ws')}/inference_zero_shot_bistream", proxy=None) as socket:
            await socket.send(json.dumps({"prompt_text": "hello world"}))
            await socket.send(prompt_wav)

            async def send_texts() -> None:
                for piece in pieces:
                    await socket.send(json.dumps({"tts_text": piece}))
                    await asyncio.sleep(0)
                await socket.send(json.dumps({"finish": True}))

            async def receive_audio() -> None:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        audio.extend(await socket.recv(decode=False))

            await asyncio.gather(send_texts(), receive_audio())
        return audio

    assert len(np.frombuffer(asyncio.run(talk()), dtype=np.int16)) > 0


@pytest.mark.parametrize("stream", ["true", "False", "1", "0", "yes", "n"])
def test_httpx_s_form(gateway: Gateway, prompt_wav: bytes, stream: str) -> None:
    data = {"tts_text": TEXT, "prompt_text": "hello world", "stream": stream, "tts_model_name": "default"}
    url = f"{gateway.url}/inference_zero_shot"
    with httpx.stream("POST", url, data=data, files=file_of(prompt_wav), timeout=60) as response:
        assert response.status_code == 200
        assert sum(map(len, response.iter_bytes())) > 0


def test_lighttts_models_and_speed(gateway: Gateway, prompt_wav: bytes) -> None:
    (name,) = requests.post(f"{gateway.url}/query_tts_model").json()["tts_models"]
    assert requests.get(f"{gateway.url}/query_tts_model").json() == {"tts_models": [name]}
    for model in (name, "default"):
        data = {"tts_text": TEXT, "prompt_text": "hello world", "tts_model_name": model, "speed": "1.5"}
        answer = requests.post(f"{gateway.url}/inference_zero_shot", files=file_of(prompt_wav), data=data)
        assert len(samples(answer)) > 0


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_lighttts_health(gateway: Gateway, path: str) -> None:
    response = requests.get(f"{gateway.url}{path}")
    assert (response.status_code, response.json()) == (200, {"message": "Ok"})


@pytest.mark.parametrize("path", ["/liveness", "/readiness"])
def test_lighttts_probes(gateway: Gateway, path: str) -> None:
    response = requests.get(f"{gateway.url}{path}")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_lighttts_metrics(gateway: Gateway) -> None:
    payload = {"tts_text": TEXT, "spk_id": "tiny-voice"}
    samples(requests.post(f"{gateway.url}/inference_sft", data=payload))
    text = requests.get(f"{gateway.url}/metrics").text
    assert 'light_tts_requests_total{method="preset",service="gateway"}' in text
    assert "light_tts_first_audio_seconds_count" in text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("mode", ["sft", "zero_shot", "cross_lingual", "instruct", "instruct2"])
def test_cosyvoice_modes(gateway: Gateway, prompt_wav: bytes, method: str, mode: str) -> None:
    payload = {"tts_text": TEXT}
    files = None
    if mode.startswith("instruct"):
        payload["instruct_text"] = "Speak softly.<|endofprompt|>" if mode == "instruct2" else "Speak softly."
    if mode in ("sft", "instruct"):
        payload["spk_id"] = "tiny-voice"
    else:
        files = [("prompt_wav", ("prompt_wav", io.BytesIO(prompt_wav), "application/octet-stream"))]
    if mode == "zero_shot":
        payload["prompt_text"] = "hello world"
    url = f"{gateway.url}/inference_{mode}"
    with requests.request(method, url, data=payload, files=files, stream=True) as response:
        assert len(samples(response)) > 0


@pytest.mark.parametrize(
    ("path", "change", "status", "field"),
    [
        ("zero_shot", {"tts_text": ""}, 422, "tts_text"),
        ("zero_shot", {"tts_text": " "}, 400, "tts_text"),
        ("zero_shot", {"speed": "9"}, 422, "speed"),
        ("zero_shot", {"stream": "perhaps"}, 422, "stream"),
        ("zero_shot", {"tts_model_name": "other"}, 400, "tts_model_name"),
        ("sft", {"spk_id": "nobody"}, 400, "spk_id"),
        ("instruct", {"instruct_text": ""}, 422, "instruct_text"),
        ("instruct2", {"instruct_text": "<|endofprompt|>"}, 400, "instruct_text"),
    ],
)
def test_a_wrong_form_is_refused_in_words_that_both_kinds_of_client_find(
    gateway: Gateway, prompt_wav: bytes, path: str, change: dict[str, str], status: int, field: str
) -> None:
    data = {"tts_text": TEXT, "prompt_text": "hello world", "spk_id": "tiny-voice", **change}
    response = requests.post(f"{gateway.url}/inference_{path}", files=file_of(prompt_wav), data=data)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["field"] == field
    assert problem["message"] == problem["detail"] != ""


def test_a_prompt_that_is_no_audio_is_refused(gateway: Gateway) -> None:
    data = {"tts_text": TEXT}
    response = requests.post(f"{gateway.url}/inference_cross_lingual", files=file_of(b"no audio"), data=data)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_input")
    response = requests.post(f"{gateway.url}/inference_cross_lingual", data=data)
    assert (response.status_code, response.json()["field"]) == (422, "prompt_wav")
