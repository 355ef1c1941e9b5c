"""What surrounds every call of gRPC: keys, quotas, deadlines, leaving clients, limits, log lines, and the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from lighttts.gateway.keys import new_key, write_keys
from lighttts.transport.wire import Accepted, Cancel, End, Error, Synth
from tests.client.fake_broker import RATE, FakeBroker, Handler, begin_only, frame_of, refuse, serve
from tests.gateway.process import Gateway
from tests.gateway.stubs import TINY, Manner, Speech, dialled, messages, services, told
from tests.gateway.test_edge import PARENT, TRACE, half_a_second_then
from tests.system.stack import ROOT, Stack

RPC = "gateway.grpc_port=0"
STATUS = health_pb2.HealthCheckResponse
HELLO = Speech(text="Hello.", manner=TINY)
SERVICES = ("lighttts.v1.Speech", "cosyvoice.CosyVoice")


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    with Gateway(stack.endpoint, RPC) as running:
        yield running


@pytest.fixture
def stuck() -> Iterator[FakeBroker]:
    """A broker that begins to speak and never goes on."""
    with FakeBroker(script={Synth: begin_only}) as broker:
        yield broker


def assert_only_log_lines(gateway: Gateway) -> None:
    """No library has written into the log, and nothing was a defect."""
    assert [line for line in gateway.lines if line.get("level") not in ("info", "warning")] == []


def failed(call: Any) -> grpc.RpcError:
    """How a stream ends."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value


def test_only_holders_of_keys_come_in_and_no_key_is_logged(stack: Stack, tmp_path: Path) -> None:
    key, secret = new_key("alice", 4, 600)
    write_keys(tmp_path / "api-keys", [key])
    with Gateway(stack.endpoint, RPC, f"gateway.keys={tmp_path}/api-keys") as gateway, dialled(gateway) as stub:
        for given in ((), (("authorization", "Bearer lt-guess"),), (("authorization", f"Basic {secret}"),)):
            for method in (stub.Synthesize, stub.ListVoices):
                with pytest.raises(grpc.RpcError) as refused:
                    method(HELLO if method is stub.Synthesize else messages.ListVoicesRequest(), metadata=given)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert told(refused.value)["error-code"] == "invalid_api_key"
        bearer = (("authorization", f"Bearer {secret}"), ("x-request-id", "alice-1"))
        assert stub.Synthesize(HELLO, metadata=bearer).content
        assert gateway.wait_for(lambda line: line.get("request_id") == "alice-1")["key"] == "alice"
        assert secret not in str(gateway.lines)


def test_a_key_is_looked_at_before_a_large_request_is_read(stack: Stack, tmp_path: Path) -> None:
    key, _ = new_key("alice", 4, 600)
    write_keys(tmp_path / "api-keys", [key])

    def never_whole() -> Iterator[bytes]:
        yield b""
        refused.result(60)

    with (
        Gateway(stack.endpoint, RPC, f"gateway.keys={tmp_path}/api-keys") as gateway,
        grpc.insecure_channel(gateway.rpc) as channel,
        ThreadPoolExecutor() as pool,
    ):
        call = channel.stream_stream("/lighttts.v1.Speech/Synthesize")
        refused = pool.submit(lambda: failed(call(never_whole())))
        assert refused.result(60).code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_s_quota_counts_calls_and_http_together(stuck: FakeBroker, tmp_path: Path) -> None:
    key, secret = new_key("bob", 1, 600)
    write_keys(tmp_path / "api-keys", [key])
    bearer = (("authorization", f"Bearer {secret}"),)
    with Gateway(stuck.endpoint, RPC, f"gateway.keys={tmp_path}/api-keys") as gateway, dialled(gateway) as stub:
        speaking = stub.SynthesizeStream(HELLO, metadata=bearer)
        next(speaking)
        data, headers = {"tts_text": "Hello.", "spk_id": "heart"}, {"Authorization": f"Bearer {secret}"}
        assert requests.post(f"{gateway.url}/inference_sft", data=data, headers=headers).status_code == 429
        refused = failed(stub.SynthesizeStream(HELLO, metadata=bearer))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told(refused)["error-code"] == "too_many_requests"
        assert told(refused)["retry-after"] == "1"
        speaking.cancel()
        stuck.wait_for(Cancel)
        gateway.wait_for(lambda line: line["event"] == "request" and line["status"] == "CANCELLED")
        assert next(stub.SynthesizeStream(HELLO, metadata=bearer)).content


def test_a_client_that_leaves_or_whose_deadline_passes_frees_its_request(stuck: FakeBroker) -> None:
    with Gateway(stuck.endpoint, RPC) as gateway:
        with dialled(gateway) as stub:
            speaking = stub.SynthesizeStream(HELLO)
            next(speaking)
            speaking.cancel()
            assert stuck.wait_for(Cancel).request_id == stuck.wait_for(Synth).request_id
            late = failed(stub.SynthesizeStream(HELLO, timeout=0.5))
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert stuck.wait_for(Cancel, 2).request_id == stuck.wait_for(Synth, 2).request_id
            assert 0 < stuck.wait_for(Synth, 2).deadline_ms < 1000
            gone = stub.Talk(iter([messages.TalkRequest(begin=TINY), messages.TalkRequest(text="Hello. ")]))
            next(gone)
        assert stuck.wait_for(Cancel, 3).request_id == stuck.wait_for(Synth, 3).request_id
        lines = [
            gateway.wait_for(lambda line, s=s: line.get("status") == s) for s in ("CANCELLED", "DEADLINE_EXCEEDED")
        ]
        assert [line["error"] for line in lines] == ["client_gone", "deadline_exceeded"]
        assert not any(line["complete"] for line in lines)
    assert_only_log_lines(gateway)


@pytest.mark.parametrize(
    ("code", "retry_ms", "status", "more"),
    [
        ("overloaded", 2500, "RESOURCE_EXHAUSTED", {"retry-after": "3", "grpc-retry-pushback-ms": "2500"}),
        ("no_worker", 0, "UNAVAILABLE", {"retry-after": "1", "grpc-retry-pushback-ms": "1000"}),
        ("worker_failed", 0, "UNAVAILABLE", {"retry-after": "1", "grpc-retry-pushback-ms": "1000"}),
        ("deadline_exceeded", 0, "DEADLINE_EXCEEDED", {"retry-after": "1", "grpc-retry-pushback-ms": "1000"}),
        ("poison", None, "INTERNAL", {"grpc-retry-pushback-ms": "-1"}),
        ("access_denied", None, "INTERNAL", {"grpc-retry-pushback-ms": "-1"}),
    ],
)
def test_what_the_broker_says_is_told_as_a_status(
    refusing: tuple[Scripted, Gateway], code: str, retry_ms: int | None, status: str, more: dict[str, str]
) -> None:
    broker, gateway = refusing
    broker.script(refuse(code, "nö", retryable=retry_ms is not None, retry_after_ms=retry_ms or 0))
    with dialled(gateway) as stub:
        error = failed(stub.SynthesizeStream(HELLO, metadata=(("x-request-id", code),)))
    assert (error.code().name, error.details()) == (status, "nö")
    assert told(error) == {"error-code": code, "x-request-id": code, **more}


class Scripted(FakeBroker):
    """Answers each request as it was last told to."""

    def script(self, handler: Handler) -> None:
        self._handlers[Synth] = handler


@pytest.fixture(scope="module")
def refusing() -> Iterator[tuple[Scripted, Gateway]]:
    with Scripted() as broker, Gateway(broker.endpoint, RPC) as running:
        yield broker, running


def test_speech_that_breaks_off_ends_in_an_error(refusing: tuple[Scripted, Gateway]) -> None:
    broker, gateway = refusing
    broker.script(half_a_second_then("worker_failed"))
    with dialled(gateway) as stub:
        call = stub.SynthesizeStream(HELLO)
        assert len(next(call).content) == 24_000
        assert failed(call).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError):
            stub.Synthesize(HELLO)


def test_audio_that_is_too_long_for_one_answer_is_refused_and_no_more_of_it_made(
    refusing: tuple[Scripted, Gateway],
) -> None:
    broker, gateway = refusing
    cancelled = len(broker.all(Cancel))

    def long(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        broker.send(peer, Accepted(message.request_id, RATE))
        quiet = np.zeros(12 << 20, np.int16)
        for number in range(3):
            broker.send(peer, replace(frame_of(message, number, first=number * len(quiet)), samples=quiet))

    broker.script(long)
    with dialled(gateway) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.Synthesize(HELLO)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert told(refused.value)["error-field"] == "text"
    broker.wait_for(Cancel, cancelled + 1)


def test_a_client_with_a_retry_policy_comes_back_when_it_is_told_to(refusing: tuple[Scripted, Gateway]) -> None:
    broker, gateway = refusing
    refused: list[float] = []

    def once(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        refused.append(time.monotonic())
        if len(refused) > 1:
            serve(broker, peer, message)
        else:
            broker.send(peer, Error(message.request_id, "overloaded", "later", "", True, 300))

    broker.script(once)
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "60s",
        "maxBackoff": "60s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = {"methodConfig": [{"name": [{"service": "lighttts.v1.Speech"}], "retryPolicy": policy}]}
    with dialled(gateway, service_config=json.dumps(config)) as stub:
        assert stub.Synthesize(HELLO, timeout=30).content
    assert 0.25 < refused[1] - refused[0] < 15


def test_a_call_is_one_log_line_under_its_id_and_trace(gateway: Gateway) -> None:
    given = (("x-request-id", "mine-1"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    with dialled(gateway) as stub:
        _, call = stub.Synthesize.with_call(HELLO, metadata=given)
    assert dict(call.initial_metadata())["x-request-id"] == "mine-1"
    line = gateway.wait_for(lambda line: line.get("request_id") == "mine-1")
    assert (line["trace_id"], line["parent_id"]) == (TRACE, PARENT)
    assert (line["method"], line["path"], line["status"]) == ("GRPC", "/lighttts.v1.Speech/Synthesize", "OK")
    assert (line["speech"], line["format"], line["complete"], line["peer"]) == ("preset", "pcm", True, "127.0.0.1")
    assert line["synthesis"]
    assert "Hello." not in str(gateway.lines)


@pytest.fixture(scope="module")
def believing(stack: Stack) -> Iterator[Gateway]:
    """A gateway that takes the word of proxies here and in one network."""
    with Gateway(stack.endpoint, RPC, "gateway.proxies=127.0.0.1,10.0.0.0/8") as running:
        yield running


@pytest.mark.parametrize(
    ("forwarded", "peer"),
    [
        ([], "127.0.0.1"),
        ([""], "127.0.0.1"),
        (["192.0.2.7"], "192.0.2.7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["203.0.113.9, 192.0.2.7, 10.1.2.3"], "192.0.2.7"),
        (["203.0.113.9", "192.0.2.7"], "192.0.2.7"),
        (["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
    ],
    ids=str,
)
def test_a_proxy_tells_who_the_client_is_as_over_http(believing: Gateway, forwarded: list[str], peer: str) -> None:
    name = f"from-{len(believing.lines)}"
    with dialled(believing) as stub:
        told_ = [("x-forwarded-for", said) for said in forwarded]
        stub.ListVoices(messages.ListVoicesRequest(), metadata=[*told_, ("x-request-id", name)])
    requests.get(
        f"{believing.url}/liveness", headers={"X-Request-ID": f"{name}-http", "X-Forwarded-For": ", ".join(forwarded)}
    )
    lines = [believing.wait_for(lambda line, n=n: line.get("request_id") == n) for n in (name, f"{name}-http")]
    assert [line["peer"] for line in lines] == [peer, peer]


def test_nobody_else_tells_who_the_client_is(gateway: Gateway) -> None:
    with dialled(gateway) as stub:
        lie = [("x-forwarded-for", "192.0.2.7"), ("x-request-id", "lie")]
        stub.ListVoices(messages.ListVoicesRequest(), metadata=lie)
    assert gateway.wait_for(lambda line: line.get("request_id") == "lie")["peer"] == "127.0.0.1"


def test_what_is_too_large_is_refused_and_the_server_goes_on(gateway: Gateway) -> None:
    with dialled(gateway) as stub:
        huge = Speech(text="x", manner=Manner(prompt=b"0" * (35 << 20)))
        with pytest.raises(grpc.RpcError) as refused:
            stub.Synthesize(huge)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as refused:
            stub.Synthesize(HELLO, metadata=(("x-request-id", "x" * 40_000),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Synthesize(HELLO).content


def test_more_calls_than_there_may_be_are_refused(stuck: FakeBroker) -> None:
    with Gateway(stuck.endpoint, RPC, "gateway.connections=2") as gateway, dialled(gateway) as stub:
        held = [stub.SynthesizeStream(HELLO) for _ in range(2)]
        for call in held:
            next(call)
        assert failed(stub.SynthesizeStream(HELLO)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in held:
            call.cancel()


def test_health_says_whether_text_can_be_spoken(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.rpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == STATUS.SERVING
        listed = health.List(health_pb2.HealthListRequest()).statuses
        assert {name: row.status for name, row in listed.items()} == dict.fromkeys(("", *SERVICES), STATUS.SERVING)
        with pytest.raises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watching = health.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert next(watching).status == STATUS.SERVICE_UNKNOWN
        watching.cancel()


def test_without_a_broker_it_is_not_serving_and_calls_are_unavailable(tmp_path: Path) -> None:
    with Gateway(f"ipc://{tmp_path}/nobody", RPC) as gateway, grpc.insecure_channel(gateway.rpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = [
            health.Check.future(health_pb2.HealthCheckRequest()),
            services.SpeechStub(channel).Synthesize.future(HELLO),
            services.SpeechStub(channel).ListVoices.future(messages.ListVoicesRequest()),
        ]
        assert asked[0].result().status == STATUS.NOT_SERVING
        for call in asked[1:]:
            assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
            assert told(call.exception())["retry-after"] == "1"


def test_watchers_hear_of_workers_that_come() -> None:
    with (
        FakeBroker(stages=("encode", "llm")) as broker,
        Gateway(broker.endpoint, RPC) as gateway,
        grpc.insecure_channel(gateway.rpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == STATUS.NOT_SERVING
        broker.stages = ("encode", "llm", "decode")
        assert next(watching).status == STATUS.SERVING
        watching.cancel()


def test_reflection_tells_of_all_services(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.rpc) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        named = {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert set(known.get_services()) == named
        for name in named:
            assert known.FindFileContainingSymbol(name).service
        speech = known.FindFileContainingSymbol("lighttts.v1.Speech").service[0]
        assert [method.name for method in speech.method][:3] == ["Synthesize", "SynthesizeStream", "Talk"]


def test_it_is_not_serving_and_finishes_what_it_has_when_it_is_told_to_end() -> None:
    begun: list[bytes] = []

    def begin(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        begin_only(broker, peer, message)
        begun.append(peer)

    with FakeBroker(script={Synth: begin}) as broker, Gateway(broker.endpoint, RPC) as gateway:
        with dialled(gateway) as stub, grpc.insecure_channel(gateway.rpc) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watching).status == STATUS.SERVING
            speaking = stub.SynthesizeStream(HELLO)
            next(speaking)
            gateway.signal(signal.SIGTERM)
            assert [row.status for row in watching] == [STATUS.NOT_SERVING]
            asked = broker.wait_for(Synth)
            broker.do(lambda: broker.send(begun[0], End(asked.request_id, 2, 50, 1)))
            assert len(list(speaking)) == 1
        assert gateway.wait() == 0


def test_a_second_signal_ends_it_at_once(stuck: FakeBroker) -> None:
    with Gateway(stuck.endpoint, RPC) as gateway:
        with dialled(gateway) as stub, grpc.insecure_channel(gateway.rpc) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watching).status == STATUS.SERVING
            speaking = stub.SynthesizeStream(HELLO)
            next(speaking)
            gateway.signal(signal.SIGTERM)
            assert next(watching).status == STATUS.NOT_SERVING
            gateway.signal(signal.SIGTERM)
            assert failed(speaking)
        assert gateway.wait() == 0
    assert_only_log_lines(gateway)


def started(*settings: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A gateway that does not come up, in a process that first runs a line of Python."""
    argv = ["lighttts-gateway", *(word for setting in settings for word in ("--set", setting))]
    program = f"import sys\n{before}\nsys.argv = {argv!r}\nfrom lighttts.gateway.main import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = started("gateway.port=0", f"gateway.grpc_port={port}")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert f"127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("package", ["grpc", "grpc_tools", "grpc_health"])
def test_a_missing_package_is_named_with_what_mends_it(package: str) -> None:
    done = started("gateway.port=0", RPC, before=f"sys.modules['{package}'] = None")
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)
    assert package in done.stderr
    assert "pip install 'lighttts[gateway]'" in done.stderr


def test_a_port_that_cannot_be_is_refused() -> None:
    done = started("gateway.grpc_port=70000")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "gateway.grpc_port" in done.stderr


def test_nothing_of_grpc_is_needed_where_it_is_not_served() -> None:
    done = started(before="import lighttts.gateway.main; sys.exit('grpc' in sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")
