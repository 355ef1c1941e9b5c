"""What surrounds every door: leaving clients, overload, limits, log lines, CORS, and the description of it all."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from starlette.routing import Route

from lighttts.client import AsyncClient, Client
from lighttts.gateway.app import make_routes
from lighttts.gateway.body import FIELD_MAX_BYTES, FIELDS_MAX, FORM_MAX_BYTES, JSON_MAX_BYTES
from lighttts.gateway.openapi import document
from lighttts.gateway.quotas import Quotas
from lighttts.transport.wire import Accepted, Audio, End, Error, Synth
from tests.client.fake_broker import RATE, FakeBroker, Handler, frame_of
from tests.gateway.process import Gateway
from tests.system.stack import Stack

LONG = "The quick brown fox jumps over the lazy dog. " * 400
MANY = " ".join(["The quick brown fox jumps over the lazy dog."] * 8)
SHORT = {"tts_text": "Hello there.", "spk_id": "tiny-voice"}
PATIENCE_S = 60.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that admits a single request."""
    settings = ["broker.max_requests=1", "encode.concurrency=1", "llm.slots=1", "decode.streams=1"]
    with Stack(tmp_path_factory.mktemp("s"), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(small: Stack) -> Iterator[Gateway]:
    with Gateway(small.endpoint, "gateway.cors_origins=https://example.org") as running:
        yield running


def wait_until_free(stack: Stack) -> None:
    """Returns when the broker has nothing to do and every worker its one place free."""
    with Client(stack.endpoint) as client:
        deadline = time.monotonic() + PATIENCE_S
        while (status := client.status()).active or status.queued or any(row.credit != 1 for row in status.workers):
            assert time.monotonic() < deadline, status


def test_a_client_that_leaves_in_mid_speech_frees_every_stage(narrow: Gateway, small: Stack) -> None:
    data, headers = {**SHORT, "tts_text": LONG}, {"X-Request-ID": "left"}
    with requests.post(f"{narrow.url}/inference_sft", data=data, headers=headers, stream=True) as response:
        assert next(response.iter_content(2))
    assert narrow.wait_for(lambda line: line.get("request_id") == "left")["complete"] is False
    wait_until_free(small)
    assert requests.post(f"{narrow.url}/inference_sft", data=SHORT).status_code == 200


def test_a_client_that_leaves_before_the_first_audio_frees_every_stage(narrow: Gateway, small: Stack) -> None:
    wait_until_free(small)
    address = urlsplit(narrow.url)
    body = f"tts_text={LONG}&spk_id=tiny-voice".replace(" ", "+").encode()
    head = (
        "POST /inference_sft HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"X-Request-ID: leaving\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection, Client(small.endpoint) as client:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + PATIENCE_S
        while not client.status().active:
            assert time.monotonic() < deadline
    line = narrow.wait_for(lambda line: line.get("request_id") == "leaving")
    assert line["error"] == "client_gone" or not line["complete"]
    wait_until_free(small)


def test_overload_is_503_with_word_when_to_come_back(narrow: Gateway, small: Stack) -> None:
    wait_until_free(small)
    with Client(small.endpoint) as client, client.synthesize(LONG) as unheard:
        next(unheard)
        refused = requests.post(f"{narrow.url}/inference_sft", data=SHORT)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    wait_until_free(small)


def half_a_second_then(*last: str) -> Handler:
    """Accepts a request, sends half a second of speech, and then nothing, or an error of a code."""

    def handler(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        broker.send(peer, Accepted(message.request_id, RATE))
        noise = np.random.default_rng(1).integers(-9000, 9000, RATE // 2, dtype=np.int16)
        broker.send(peer, replace(frame_of(message, 0), samples=noise))
        for code in last:
            broker.send(peer, Error(message.request_id, code, "it broke", "", True, 0))

    return handler


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_the_first_audio_goes_out_while_the_rest_is_not_made_yet(stuck: Gateway, name: str) -> None:
    body = {"model": "tts-1", "voice": "heart", "input": "Hello.", "response_format": name}
    with requests.post(f"{stuck.url}/v1/audio/speech", json=body, stream=True) as response:
        assert response.status_code == 200
        assert len(next(response.iter_content(512))) == 512


def test_a_frame_without_audio_is_not_counted_as_the_first_audio() -> None:
    def handler(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        name, samples = message.request_id, np.zeros(480 if message.text == "Hello." else 0, np.int16)
        broker.send(peer, Accepted(name, RATE))
        broker.send(peer, Audio(name, 0, 1, 0, 0, True, 0, 1, samples))
        broker.send(peer, End(name, 1, 1, 1))

    with FakeBroker(script={Synth: handler}) as broker, Gateway(broker.endpoint) as gateway:
        for text in ("Hello.", "Nothing."):
            asked = {"tts_text": text, "spk_id": "heart"}
            assert requests.post(f"{gateway.url}/inference_sft", data=asked).status_code == 200
        assert "light_tts_first_audio_seconds_count 1.0" in requests.get(f"{gateway.url}/metrics").text


@pytest.fixture(scope="module")
def stuck() -> Iterator[Gateway]:
    with FakeBroker(script={Synth: half_a_second_then()}) as broker, Gateway(broker.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def breaking() -> Iterator[Gateway]:
    with FakeBroker(script={Synth: half_a_second_then("worker_failed")}) as broker, Gateway(broker.endpoint) as running:
        yield running


def test_speech_that_breaks_off_is_never_taken_for_the_whole(breaking: Gateway) -> None:
    with requests.post(f"{breaking.url}/inference_sft", data=SHORT, stream=True) as response:
        assert response.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            assert response.content
    line = breaking.wait_for(lambda line: line["event"] == "request" and line["path"] == "/inference_sft")
    assert line["complete"] is False


def test_events_that_break_off_end_with_the_error(breaking: Gateway) -> None:
    body = {"model": "tts-1", "voice": "heart", "input": "Hello.", "stream_format": "sse"}
    lines = requests.post(f"{breaking.url}/v1/audio/speech", json=body).text.splitlines()
    assert '"type": "error"' in lines[-2]
    assert '"code": "worker_failed"' in lines[-2]


def test_without_a_broker_probes_and_requests_are_503(tmp_path: Path) -> None:
    with Gateway(f"ipc://{tmp_path}/nobody") as gateway:
        assert requests.get(f"{gateway.url}/liveness").status_code == 200
        urls = [f"{gateway.url}{path}" for path in ("/readiness", "/health", "/v1/models", "/v1/audio/voices")]
        with ThreadPoolExecutor() as pool:
            for response in pool.map(requests.get, urls):
                assert response.status_code == 503
                assert response.headers["retry-after"]


def test_it_finishes_what_it_has_when_it_is_told_to_end(stack: Stack) -> None:
    with Gateway(stack.endpoint) as gateway:
        with requests.post(f"{gateway.url}/inference_sft", data={**SHORT, "tts_text": MANY}, stream=True) as response:
            content = response.iter_content(2)
            assert next(content)
            gateway.signal(signal.SIGTERM)
            assert sum(map(len, content)) > 0
        assert gateway.wait() == 0


def test_a_request_is_one_log_line_under_its_id_and_trace(gateway: Gateway) -> None:
    headers = {"X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    response = requests.post(f"{gateway.url}/inference_sft", data=SHORT, headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    line = gateway.wait_for(lambda line: line.get("request_id") == "mine-1")
    assert (line["trace_id"], line["parent_id"]) == (TRACE, PARENT)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/inference_sft", 200)
    assert (line["speech"], line["format"], line["complete"]) == ("preset", "pcm", True)
    assert line["bytes"] == len(response.content)
    assert SHORT["tts_text"] not in str(gateway.lines)


@pytest.mark.parametrize("given", ["", "with space", "x" * 65])
def test_an_unusable_request_id_is_replaced(gateway: Gateway, given: str) -> None:
    headers = {"X-Request-ID": given, "traceparent": "00-0-0-01"}
    made = requests.get(f"{gateway.url}/liveness", headers=headers).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert "trace_id" not in gateway.wait_for(lambda line: line.get("request_id") == made)


def test_pages_of_other_origins_may_use_it_only_if_they_are_named(gateway: Gateway, narrow: Gateway) -> None:
    named, other = ({"Origin": origin} for origin in ("https://example.org", "https://example.com"))
    allowed = "access-control-allow-origin"
    assert requests.get(f"{narrow.url}/liveness", headers=named).headers[allowed] == "https://example.org"
    assert allowed not in requests.get(f"{narrow.url}/liveness", headers=other).headers
    assert allowed not in requests.get(f"{gateway.url}/liveness", headers=named).headers


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/audio/speech", {"data": b" " * (JSON_MAX_BYTES + 1)}, 413),
        ("/inference_cross_lingual", {"files": {"prompt_wav": b"0" * (FORM_MAX_BYTES + 1)}}, 413),
        ("/v1/audio/speech", {"data": (b" " * 1000 for _ in range(JSON_MAX_BYTES // 1000 + 1))}, 413),
        ("/inference_cross_lingual", {"data": b"tts_text", "headers": {"Content-Type": "text/plain"}}, 422),
        ("/inference_sft", {"data": {**SHORT, "tts_text": "x" * (FIELD_MAX_BYTES + 1)}}, 400),
        ("/inference_sft", {"data": dict.fromkeys(map(str, range(FIELDS_MAX + 1)), "x")}, 400),
        ("/inference_sft", {"data": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400),
        ("/inference_sft", {"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ("/inference_sft", {"data": {**SHORT, "tts_text": "Hello. " * 20_000}}, 400),
        ("/v1/audio/speech", {"data": b"{"}, 400),
        ("/v1/audio/speech", {"data": b"[" * 100_000}, 400),
        ("/v1/audio/speech", {"data": b"\xff"}, 400),
    ],
    ids=[
        "JSON",
        "a form",
        "JSON of unknown length",
        "text for a form",
        "a field",
        "many fields",
        "another boundary",
        "no boundary",
        "a text",
        "broken JSON",
        "deep JSON",
        "no text at all",
    ],
)
def test_what_is_too_large_or_no_body_of_its_kind_is_refused(
    gateway: Gateway, path: str, body: dict[str, Any], status: int
) -> None:
    response = requests.post(f"{gateway.url}{path}", **body)
    assert response.status_code == status, response.text
    error = response.json().get("error") or response.json()
    assert error.get("message")


@pytest.mark.parametrize("path", ["/query_tts_model", "/nothing", "/liveness"])
def test_a_body_that_nobody_asked_for_is_not_kept(gateway: Gateway, path: str) -> None:
    before = gateway.resident_mb
    pieces = (bytes(1 << 20) for _ in range(64))
    assert requests.post(f"{gateway.url}{path}", data=pieces).status_code in (200, 404, 405)
    assert gateway.resident_mb < before + 16


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/nothing", "application/json"), ("/nothing", "application/problem+json")]
)
def test_an_unknown_path_is_told_in_the_shape_of_its_door(gateway: Gateway, path: str, kind: str) -> None:
    response = requests.get(f"{gateway.url}{path}")
    assert (response.status_code, response.headers["content-type"]) == (404, kind)
    assert requests.delete(f"{gateway.url}/liveness").status_code == 405


def test_the_openapi_document_has_every_path_and_method() -> None:
    client = AsyncClient("ipc:///nowhere/clients")
    doors = make_routes(client, Quotas(), None)
    made = [route for route in doors if isinstance(route, Route)]
    asyncio.run(client.close())
    routes = {(route.path, method.lower()) for route in made for method in route.methods or () if method != "HEAD"}
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert described == routes


def test_the_openapi_document_is_served(gateway: Gateway) -> None:
    assert requests.get(f"{gateway.url}/openapi.json").json() == document()
