"""Two gateways behind nginx and behind HAProxy, with the configurations of conf/ and the real programs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from websockets.sync.client import connect

from lighttts.transport.wire import Cancel, Synth
from tests.client.fake_broker import FakeBroker, begin_only, serve
from tests.gateway.process import Gateway
from tests.gateway.proxy import Proxy
from tests.gateway.stubs import TINY, Speech, messages, services
from tests.gateway.test_edge import half_a_second_then
from tests.system.stack import Stack

SHORT = {"tts_text": "Hello there.", "spk_id": "tiny-voice"}
PATIENCE_S = 30.0
KINDS = ("nginx", "haproxy")
BEHIND_PROXY = ("gateway.proxies=127.0.0.1", "gateway.grpc_port=0")


def gateways(endpoint: str, scope: ExitStack) -> tuple[Gateway, Gateway]:
    first, second = (scope.enter_context(Gateway(endpoint, *BEHIND_PROXY)) for _ in range(2))
    return first, second


@pytest.fixture(scope="module", params=KINDS)
def speaking(
    request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, tuple[Gateway, Gateway]]]:
    """A proxy before two gateways of one stack."""
    with ExitStack() as scope:
        pair = gateways(stack.endpoint, scope)
        folder = tmp_path_factory.mktemp(request.param)
        yield scope.enter_context(Proxy(folder, request.param, pair)), pair


@pytest.fixture(params=KINDS)
def stuck(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Proxy, FakeBroker]]:
    """A proxy before two gateways of a broker that sends half a second of speech, and then nothing."""
    with ExitStack() as scope:
        broker = scope.enter_context(FakeBroker(script={Synth: half_a_second_then()}))
        yield scope.enter_context(Proxy(tmp_path, request.param, gateways(broker.endpoint, scope))), broker


def test_speech_comes_through_under_its_request_id(speaking: tuple[Proxy, tuple[Gateway, Gateway]]) -> None:
    proxy, _ = speaking
    headers = {"X-Request-ID": "through-1"}
    response = requests.post(f"{proxy.url}/inference_sft", data=SHORT, headers=headers)
    assert response.status_code == 200
    assert response.content
    assert len(response.content) % 1920 == 0
    assert response.headers["x-request-id"] == "through-1"
    assert len(requests.get(f"{proxy.url}/liveness").headers["x-request-id"]) >= 32


def test_the_gateways_learn_who_the_client_is(speaking: tuple[Proxy, tuple[Gateway, Gateway]]) -> None:
    proxy, pair = speaking
    with socket.create_connection(("127.0.0.1", proxy.port), source_address=("127.0.0.9", 0)) as connection:
        lie = "X-Forwarded-For: 10.9.8.7\r\nX-Request-ID: who\r\n"
        connection.sendall(f"GET /liveness HTTP/1.1\r\nHost: x\r\n{lie}Connection: close\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
    deadline = time.monotonic() + PATIENCE_S
    while not (lines := [line for one in pair for line in one.lines if line.get("request_id") == "who"]):
        assert time.monotonic() < deadline
    assert [line["peer"] for line in lines] == ["127.0.0.9"]


def test_the_gateways_learn_who_the_client_of_a_grpc_call_is(
    speaking: tuple[Proxy, tuple[Gateway, Gateway]], tmp_path: Path
) -> None:
    proxy, pair = speaking
    (tmp_path / "message").write_bytes(bytes(5))
    headers = ("Content-Type: application/grpc", "TE: trailers", "X-Forwarded-For: 10.9.8.7", "X-Request-ID: caller")
    told = [word for header in headers for word in ("-H", header)]
    asked = ["--interface", "127.0.0.9", "--data-binary", f"@{tmp_path}/message", *told]
    method = f"http://{proxy.rpc}/lighttts.v1.Speech/ListVoices"
    curl = ["curl", "--fail", "--silent", "--show-error", "--noproxy", "*", "--http2-prior-knowledge"]
    done = subprocess.run([*curl, *asked, method], capture_output=True, check=True, timeout=PATIENCE_S)
    assert b"tiny-voice" in done.stdout
    deadline = time.monotonic() + PATIENCE_S
    while not (lines := [line for one in pair for line in one.lines if line.get("request_id") == "caller"]):
        assert time.monotonic() < deadline
    assert [line["peer"] for line in lines] == ["127.0.0.9"]


def test_a_grpc_conversation_speaks_while_its_text_is_being_written(
    speaking: tuple[Proxy, tuple[Gateway, Gateway]],
) -> None:
    proxy, _ = speaking
    sounding = threading.Event()

    def written() -> Iterator[Any]:
        yield messages.TalkRequest(begin=TINY)
        yield messages.TalkRequest(text="The quick brown fox jumps over the lazy dog. " * 4)
        yield messages.TalkRequest(flush=messages.Flush())
        assert sounding.wait(PATIENCE_S)
        yield messages.TalkRequest(text="Hello there.")

    with grpc.insecure_channel(proxy.rpc) as channel:
        for piece in services.SpeechStub(channel).Talk(written(), timeout=60):
            assert piece.content
            sounding.set()
    assert sounding.is_set()


def test_a_web_socket_speaks(speaking: tuple[Proxy, tuple[Gateway, Gateway]]) -> None:
    proxy, _ = speaking
    with connect(f"ws://127.0.0.1:{proxy.port}/ws/speech") as socket:
        for message in ({"voice": "tiny-voice"}, {"text": "Hello there."}, {"end": True}):
            socket.send(json.dumps(message))
        said = [socket.recv(timeout=PATIENCE_S)]
        while isinstance(said[-1], bytes):
            said.append(socket.recv(timeout=PATIENCE_S))
    assert json.loads(said[-1])["type"] == "done"
    assert len(said) > 1


def test_a_grpc_message_of_any_allowed_size_comes_through(speaking: tuple[Proxy, tuple[Gateway, Gateway]]) -> None:
    proxy, _ = speaking
    recording = bytes(16 << 20)
    asked = messages.ConvertRequest(source=recording, manner=messages.Manner(prompt=recording))
    with grpc.insecure_channel(proxy.rpc) as channel, pytest.raises(grpc.RpcError) as refused:
        list(services.SpeechStub(channel).Convert(asked, timeout=PATIENCE_S))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_recording_of_any_allowed_size_comes_through(speaking: tuple[Proxy, tuple[Gateway, Gateway]]) -> None:
    proxy, _ = speaking
    data = {"tts_text": "Hello.", "prompt_text": "hello"}
    response = requests.post(f"{proxy.url}/inference_zero_shot", data=data, files={"prompt_wav": bytes(16 << 20)})
    assert response.status_code in (400, 422)
    assert "detail" in response.json()


def test_the_first_audio_comes_through_while_the_rest_is_not_made_yet(stuck: tuple[Proxy, FakeBroker]) -> None:
    proxy, _ = stuck
    with requests.post(f"{proxy.url}/inference_sft", data=SHORT, stream=True) as response:
        assert response.status_code == 200
        content = response.iter_content(24000)
        received = 0
        while received < 24000:
            received += len(next(content))


def test_the_first_audio_of_a_grpc_stream_comes_through(stuck: tuple[Proxy, FakeBroker]) -> None:
    proxy, broker = stuck
    with grpc.insecure_channel(proxy.rpc) as channel:
        call = services.SpeechStub(channel).SynthesizeStream(Speech(text="Hello.", manner=TINY), timeout=PATIENCE_S)
        received = 0
        while received < 24000:
            received += len(next(call).content)
        call.cancel()
        assert broker.wait_for(Cancel)


def test_a_client_that_leaves_frees_its_request(stuck: tuple[Proxy, FakeBroker]) -> None:
    proxy, broker = stuck
    with closing(requests.post(f"{proxy.url}/inference_sft", data=SHORT, stream=True)) as response:
        next(response.iter_content(2))
    assert broker.wait_for(Cancel)


def test_when_a_gateway_dies_the_other_takes_all(stack: Stack, tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        with ExitStack() as scope:
            first, second = gateways(stack.endpoint, scope)
            proxy = scope.enter_context(Proxy(tmp_path / kind, kind, (first, second)))
            assert [requests.post(f"{proxy.url}/inference_sft", data=SHORT).status_code for _ in range(4)] == [200] * 4
            first.signal(signal.SIGKILL)
            first.wait()
            assert [requests.post(f"{proxy.url}/inference_sft", data=SHORT).status_code for _ in range(4)] == [200] * 4


@pytest.mark.parametrize(
    ("kind", "status"), [("nginx", grpc.StatusCode.INTERNAL), ("haproxy", grpc.StatusCode.UNKNOWN)]
)
def test_calls_of_gateways_that_die_end_in_errors(tmp_path: Path, kind: str, status: grpc.StatusCode) -> None:
    def begin_one(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        if message.text == "Hello.":
            begin_only(broker, peer, message)

    with ExitStack() as scope:
        broker = scope.enter_context(FakeBroker(script={Synth: begin_one}))
        pair = gateways(broker.endpoint, scope)
        proxy = scope.enter_context(Proxy(tmp_path, kind, pair))
        stub = services.SpeechStub(scope.enter_context(grpc.insecure_channel(proxy.rpc)))
        speaking = stub.SynthesizeStream(Speech(text="Hello.", manner=TINY), timeout=PATIENCE_S)
        assert next(speaking).content
        waiting = stub.SynthesizeStream(Speech(text="Silence.", manner=TINY), timeout=PATIENCE_S)
        broker.wait_for(Synth, 2)
        for gateway in pair:
            gateway.signal(signal.SIGKILL)
            gateway.wait()
        for call, expected in ((speaking, status), (waiting, grpc.StatusCode.UNAVAILABLE)):
            with pytest.raises(grpc.RpcError) as broken:
                list(call)
            assert broken.value.code() is expected


def test_haproxy_asks_the_other_gateway_what_one_that_died_has_not_begun_to_answer(tmp_path: Path) -> None:
    asked: list[FakeBroker] = []
    one_has_it = threading.Event()

    def answer_second(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        asked.append(broker)
        one_has_it.set()
        if len(asked) == 2:
            serve(broker, peer, message)

    with ExitStack() as scope:
        brokers = [scope.enter_context(FakeBroker(script={Synth: answer_second})) for _ in range(2)]
        pair = [scope.enter_context(Gateway(broker.endpoint, *BEHIND_PROXY)) for broker in brokers]
        proxy = scope.enter_context(Proxy(tmp_path, "haproxy", (pair[0], pair[1])))
        stub = services.SpeechStub(scope.enter_context(grpc.insecure_channel(proxy.rpc)))
        call = stub.SynthesizeStream(Speech(text="Hello.", manner=TINY), timeout=PATIENCE_S)
        assert one_has_it.wait(PATIENCE_S)
        one = pair[brokers.index(asked[0])]
        one.signal(signal.SIGKILL)
        one.wait()
        assert sum(len(frame.content) for frame in call)
        assert {*brokers} == {*asked}


@pytest.mark.parametrize("kind", KINDS)
def test_when_a_gateway_dies_the_other_takes_all_calls_of_grpc(stack: Stack, tmp_path: Path, kind: str) -> None:
    hello = Speech(text="Hello there.", manner=TINY)
    with ExitStack() as scope:
        pair = gateways(stack.endpoint, scope)
        proxy = scope.enter_context(Proxy(tmp_path, kind, pair))
        stub = services.SpeechStub(scope.enter_context(grpc.insecure_channel(proxy.rpc)))
        while not all(any(line.get("method") == "GRPC" for line in one.lines) for one in pair):
            list(stub.SynthesizeStream(hello, timeout=PATIENCE_S))
        pair[0].signal(signal.SIGKILL)
        pair[0].wait()
        for _ in range(4):
            list(stub.SynthesizeStream(hello, timeout=PATIENCE_S))
            turns = [messages.TalkRequest(begin=TINY), messages.TalkRequest(text="Hello there.")]
            list(stub.Talk(iter(turns), timeout=PATIENCE_S))
