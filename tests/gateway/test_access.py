"""API keys and quotas: who comes in, how much each may ask for, and that no secret is shown."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests

from lighttts.gateway.keys import new_key, read_keys, write_keys
from lighttts.transport.wire import Cancel, Synth
from tests.client.fake_broker import FakeBroker, begin_only
from tests.gateway.process import Gateway
from tests.system.stack import ROOT, Stack

TEXT = "Hello there."


class Keys:
    """A file of keys; `secrets` by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self.write(alice=(16, 600))

    def write(self, **quotas: tuple[int, int]) -> None:
        keys = []
        for name, (at_once, per_minute) in quotas.items():
            key, self.secrets[name] = new_key(name, at_once, per_minute)
            keys.append(key)
        write_keys(self.path, keys)

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[name]}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "api-keys")


@pytest.fixture(scope="module")
def guarded(stack: Stack, keys: Keys) -> Iterator[Gateway]:
    with Gateway(stack.endpoint, f"gateway.keys={keys.path}") as running:
        yield running


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer lt-guess"}, {"Authorization": "Basic YTpi"}])
@pytest.mark.parametrize("path", ["/v1/models", "/query_tts_model", "/metrics"])
def test_nobody_comes_in_without_a_key(guarded: Gateway, path: str, header: dict[str, str]) -> None:
    response = requests.get(f"{guarded.url}{path}", headers=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_probes_and_the_description_need_no_key(guarded: Gateway) -> None:
    for path in ("/health", "/healthz", "/liveness", "/readiness", "/openapi.json"):
        assert requests.get(f"{guarded.url}{path}").status_code == 200


def test_openai_s_client_is_told_in_its_own_words(guarded: Gateway, keys: Keys) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="guess", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        keys.write(alice=(16, 600))
        client.api_key = keys.secrets["alice"]
        assert client.audio.speech.create(model="tts-1", voice="tiny-voice", input=TEXT).content


def test_a_changed_file_counts_at_once(guarded: Gateway, keys: Keys) -> None:
    keys.write(alice=(16, 600), bob=(16, 600))
    bob = keys.bearer("bob")
    assert requests.get(f"{guarded.url}/v1/models", headers=bob).status_code == 200
    write_keys(keys.path, [key for key in read_keys(keys.path) if key.name != "bob"])
    assert requests.get(f"{guarded.url}/v1/models", headers=bob).status_code == 401


def test_a_damaged_file_shuts_nobody_out(guarded: Gateway, keys: Keys) -> None:
    keys.write(alice=(16, 600))
    assert requests.get(f"{guarded.url}/v1/models", headers=keys.bearer("alice")).status_code == 200
    keys.path.write_text("damaged\n")
    assert requests.get(f"{guarded.url}/v1/models", headers=keys.bearer("alice")).status_code == 200
    guarded.wait_for(lambda line: line["event"] == "API keys stay as they were")


def test_requests_a_minute_are_limited_with_word_when_to_come_back(guarded: Gateway, keys: Keys) -> None:
    keys.write(carol=(16, 1), dave=(16, 600))
    payload = {"tts_text": TEXT, "spk_id": "tiny-voice"}
    url = f"{guarded.url}/inference_sft"
    assert requests.post(url, data=payload, headers=keys.bearer("carol")).status_code == 200
    refused = requests.post(url, data=payload, headers=keys.bearer("carol"))
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert requests.post(url, data=payload, headers=keys.bearer("dave")).status_code == 200


def test_requests_at_once_are_limited_until_one_ends(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "api-keys")
    keys.write(erin=(1, 600))
    payload = {"tts_text": TEXT, "spk_id": "heart"}
    headers = keys.bearer("erin")
    with (
        FakeBroker(script={Synth: begin_only}) as broker,
        Gateway(broker.endpoint, f"gateway.keys={keys.path}") as gateway,
    ):
        url = f"{gateway.url}/inference_sft"
        with requests.post(url, data=payload, headers={**headers, "X-Request-ID": "erin-1"}, stream=True) as speaking:
            content = speaking.iter_content(2)
            assert next(content)
            refused = requests.post(url, data=payload, headers=headers)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        broker.wait_for(Cancel)
        gateway.wait_for(lambda line: line.get("request_id") == "erin-1")
        with requests.post(url, data=payload, headers=headers, stream=True) as speaking:
            assert speaking.status_code == 200


def test_no_secret_is_in_the_log(guarded: Gateway, keys: Keys) -> None:
    keys.write(frank=(16, 600))
    headers = {**keys.bearer("frank"), "X-Request-ID": "frank-1"}
    requests.get(f"{guarded.url}/v1/models?api_key=hush", headers=headers)
    line = guarded.wait_for(lambda line: line.get("request_id") == "frank-1")
    assert line["key"] == "frank"
    written = str(guarded.lines)
    assert "hush" not in written
    assert not any(secret in written for secret in keys.secrets.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("gateway.host=0.0.0.0",), "make an API key"),
        (("gateway.keys=/nowhere/api-keys",), "cannot be read"),
        (("gateway.cors_origins=example.org",), "gateway.cors_origins"),
    ],
)
def test_it_does_not_start_open_to_the_network_or_with_settings_that_cannot_be(
    settings: tuple[str, ...], says: str
) -> None:
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "lighttts.gateway.main", "--set", "gateway.port=0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "lighttts.gateway.main", "--set", f"gateway.port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 78
    assert f"127.0.0.1:{port}" in done.stderr
