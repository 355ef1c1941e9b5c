"""TLS at the gateway itself: HTTP, WebSockets and gRPC with one certificate, which is followed when it is renewed."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import requests
from websockets.sync.client import connect

from lighttts.errors import ConfigError
from lighttts.gateway.identity import read_identity
from tests.broker.certificates import Authority
from tests.gateway.process import Gateway
from tests.gateway.stubs import TINY, Speech, messages, services
from tests.gateway.test_rpc_edge import started
from tests.system.stack import Stack

RPC = "gateway.grpc_port=0"
NAMES = "DNS:localhost,IP:127.0.0.1"
PATIENCE_S = 30.0
SHORT = {"tts_text": "Hello there.", "spk_id": "tiny-voice"}
HELLO = Speech(text="Hello there.", manner=TINY)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(pair: tuple[Path, Path]) -> tuple[str, str]:
    certificate, key = pair
    return f"gateway.tls_certificate={certificate}", f"gateway.tls_key={key}"


@pytest.fixture(scope="module")
def secured(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    """A gateway with a certificate, and that of who signed it."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    with Gateway(stack.endpoint, RPC, *settings(authority.issue("gateway", NAMES))) as gateway:
        yield gateway, authority.certificate


@contextmanager
def dialled_by_tls(gateway: Gateway, trusted: Path) -> Iterator[Any]:
    credentials = grpc.ssl_channel_credentials(trusted.read_bytes())
    with grpc.secure_channel(gateway.rpc, credentials) as channel:
        yield services.SpeechStub(channel)


def test_http_is_served_to_who_trusts_the_authority(secured: tuple[Gateway, Path]) -> None:
    gateway, trusted = secured
    assert gateway.url.startswith("https://")
    response = requests.post(f"{gateway.url}/inference_sft", data=SHORT, verify=str(trusted))
    assert (response.status_code, len(response.content) % 960) == (200, 0)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{gateway.url}/liveness")


def test_programs_for_openai_speak(secured: tuple[Gateway, Path]) -> None:
    gateway, trusted = secured
    with (
        openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=trusted)) as http,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", http_client=http, max_retries=0) as api,
    ):
        assert api.audio.speech.create(model="tts-1", voice="tiny-voice", input="Hello there.").content


def test_a_web_socket_speaks(secured: tuple[Gateway, Path]) -> None:
    gateway, trusted = secured
    context = ssl.create_default_context(cafile=trusted)
    with connect(f"{gateway.url.replace('https', 'wss')}/ws/speech", ssl=context) as socket:
        for message in ({"voice": "tiny-voice"}, {"text": "Hello there.", "end": True}):
            socket.send(json.dumps(message))
        said = [socket.recv(timeout=PATIENCE_S)]
        while isinstance(said[-1], bytes):
            said.append(socket.recv(timeout=PATIENCE_S))
    assert json.loads(said[-1])["type"] == "done"


def test_grpc_speaks_in_all_kinds_of_calls(secured: tuple[Gateway, Path]) -> None:
    with dialled_by_tls(*secured) as stub:
        assert stub.Synthesize(HELLO).sample_rate
        assert list(stub.SynthesizeStream(HELLO))
        turns = [messages.TalkRequest(begin=TINY), messages.TalkRequest(text="Hello there.")]
        assert list(stub.Talk(iter(turns)))


def test_who_speaks_no_tls_gets_nothing_and_the_others_go_on(secured: tuple[Gateway, Path]) -> None:
    gateway, trusted = secured
    with pytest.raises(requests.ConnectionError):
        requests.get(gateway.url.replace("https", "http"))
    with grpc.insecure_channel(gateway.rpc) as channel, pytest.raises(grpc.RpcError) as refused:
        services.SpeechStub(channel).Synthesize(HELLO)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert requests.get(f"{gateway.url}/liveness", verify=str(trusted)).status_code == 200
    with dialled_by_tls(gateway, trusted) as stub:
        assert stub.ListVoices(messages.ListVoicesRequest()).voices
    assert [line for line in gateway.lines if line.get("level") not in ("info", "warning")] == []


def shown(address: str) -> bytes:
    """The certificate that a server shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.removeprefix("https://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE_S) as connection,
        context.wrap_socket(connection) as secured,
    ):
        content = secured.getpeercert(binary_form=True)
    assert content
    return content


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def test_a_renewed_certificate_is_shown_without_a_restart(stack: Stack, tmp_path: Path, authority: Authority) -> None:
    used = tmp_path / "used.crt", tmp_path / "used.key"

    def put(certificate: Path, key: Path) -> None:
        for source, target in zip((certificate, key), used, strict=True):
            shutil.copy(source, target)

    first, second = authority.issue("first", NAMES), authority.issue("second", NAMES)
    put(*first)
    with Gateway(stack.endpoint, RPC, *settings(used)) as gateway:
        assert [shown(gateway.url), shown(gateway.rpc)] == [der(first[0])] * 2
        put(*second)
        assert [shown(gateway.url), shown(gateway.rpc)] == [der(second[0])] * 2
        with dialled_by_tls(gateway, authority.certificate) as stub:
            assert stub.Synthesize(HELLO).sample_rate
        put(first[0], second[1])
        assert [shown(gateway.url), shown(gateway.rpc)] == [der(second[0])] * 2
        line = gateway.wait_for(lambda line: line["event"] == "the certificate stays as it was")
        assert "is not that of" in line["reason"]
        put(*first)
        assert [shown(gateway.url), shown(gateway.rpc)] == [der(first[0])] * 2


def test_files_that_cannot_be_used_are_refused_in_words(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("gateway", NAMES)
    _, other = authority.issue("other", NAMES)
    absent, garbage, locked = tmp_path / "absent", tmp_path / "garbage", tmp_path / "locked"
    garbage.write_text("no PEM")
    garbage.chmod(0o600)
    command = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:hush", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for pair, says in (
        ((absent, key), f"certificate {absent} cannot be read"),
        ((certificate, absent), f"key of the certificate {absent} cannot be read"),
        ((garbage, key), "both must be PEM"),
        ((certificate, garbage), "both must be PEM"),
        ((certificate, other), "is not that of the certificate"),
        ((certificate, locked), "without a password"),
    ):
        with pytest.raises(ConfigError, match=says):
            read_identity(*pair)
    for mode in (0o640, 0o604):
        key.chmod(mode)
        with pytest.raises(ConfigError, match=f"mode {mode:04o}.: chmod 600 {key}"):
            read_identity(certificate, key)


def test_a_gateway_does_not_start_with_what_it_cannot_use(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("gateway", NAMES)
    key.chmod(0o644)
    for given, says in (
        (settings((certificate, key)), f"chmod 600 {key}"),
        (settings((certificate, key))[:1], "go together"),
        (settings((certificate, key))[1:], "go together"),
    ):
        done = started("gateway.port=0", RPC, *given)
        assert (done.returncode, done.stderr.count("\n")) == (78, 1)
        assert says in done.stderr
