"""Registered voices over HTTP: added by a form, spoken with at every door, their key's alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import grpc
import openai
import pytest
import requests
from websockets.sync.client import connect

from lighttts.gateway.keys import new_key, write_keys
from lighttts.transport.wire import AddVoice, Synth
from tests.client.fake_broker import FakeBroker
from tests.gateway.process import Gateway
from tests.gateway.stubs import Manner, Speech, dialled, messages, told
from tests.system.stack import Stack

TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."
SAID = "What I say in it."
PRESET = {"id": "tiny-voice", "name": "tiny-voice"}


class Voices:
    """What a program does at /v1/audio/voices with a key."""

    def __init__(self, url: str, secret: str = "") -> None:
        self.url = f"{url}/v1/audio/voices"
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def add(self, recording: bytes, **fields: str) -> requests.Response:
        form = {"name": "mine", "text": SAID, **fields}
        return requests.post(self.url, data=form, files={"audio_sample": recording}, headers=self.headers)

    def at(self, method: str, path: str = "", **more: object) -> requests.Response:
        return requests.request(method, f"{self.url}{path}", headers=self.headers, **more)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        return [voice["id"] for voice in self.at("GET").json()["voices"]]


def refused(response: requests.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"], error["param"]


@pytest.fixture
def voices(gateway: Gateway) -> Iterator[Voices]:
    """At a gateway without keys; whatever a test adds goes with it."""
    voices = Voices(gateway.url)
    yield voices
    for name in voices.names():
        voices.at("DELETE", f"/{name}")


@pytest.fixture(scope="module")
def keyed_gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, str]]]:
    """A gateway with keys, and those of its two users."""
    path = tmp_path_factory.mktemp("keys") / "api-keys"
    made = {name: new_key(name, 16, 6000) for name in ("alice", "bob")}
    write_keys(path, [key for key, _ in made.values()])
    with Gateway(stack.endpoint, f"gateway.keys={path}", "gateway.grpc_port=0") as gateway:
        yield gateway, {name: secret for name, (_, secret) in made.items()}


@pytest.fixture
def keyed(keyed_gateway: tuple[Gateway, dict[str, str]]) -> dict[str, Voices]:
    """What its users do."""
    gateway, secrets = keyed_gateway
    return {name: Voices(gateway.url, secret) for name, secret in secrets.items()}


def test_a_voice_is_added_shown_renamed_and_removed(voices: Voices, prompt_wav: bytes) -> None:
    response = voices.add(prompt_wav)
    added = response.json()
    assert response.status_code == 201
    assert (added["id"], added["object"], added["owner"], added["shared"]) == ("mine", "audio.voice", "", False)
    assert (added["bytes"], added["sha256"]) == (len(prompt_wav), hashlib.sha256(prompt_wav).hexdigest())
    assert voices.at("GET", "/mine").json() == added
    preset, listed = voices.at("GET").json()["voices"]
    assert (preset, listed["id"]) == (PRESET, "mine")
    assert voices.at("PATCH", "/mine", json={"name": "my own"}).json()["id"] == "my own"
    assert refused(voices.at("GET", "/mine")) == (404, "unknown_voice", "name")
    gone = voices.at("DELETE", "/my%20own")
    assert gone.json() == {"id": "my own", "object": "audio.voice", "deleted": True}
    assert voices.at("GET").json() == {"voices": [PRESET]}


def test_it_speaks_at_every_door(gateway: Gateway, voices: Voices, prompt_wav: bytes) -> None:
    voices.add(prompt_wav)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as api:
        assert api.audio.speech.create(model="tts-1", voice="mine", input=TEXT).content
    form = {"tts_text": TEXT, "spk_id": "mine"}
    assert requests.post(f"{gateway.url}/inference_sft", data=form).status_code == 200
    with connect(f"{gateway.url.replace('http', 'ws')}/ws/speech") as socket:
        socket.send('{"voice": "mine"}')
        socket.send(f'{{"text": "{TEXT}", "end": true}}')
        assert '"done"' in next(message for message in socket if isinstance(message, str))


def test_a_voice_travels_as_a_file(voices: Voices, prompt_wav: bytes) -> None:
    added = voices.add(prompt_wav).json()
    exported = voices.at("GET", "/mine/export")
    assert exported.headers["content-disposition"] == "attachment; filename*=UTF-8''mine.ltv"
    voices.at("DELETE", "/mine")
    imported = voices.at("POST", "/import", files={"file": exported.content})
    assert imported.status_code == 201
    assert {**imported.json(), "created_at": 0} == {**added, "created_at": 0}
    again = {"name": "other", "shared": "true"}
    other = voices.at("POST", "/import", files={"file": io.BytesIO(exported.content)}, data=again)
    assert (other.json()["id"], other.json()["shared"]) == ("other", True)
    assert refused(voices.at("POST", "/import", files={"file": exported.content[:-1]}))[:2] == (400, "invalid_input")


def test_what_is_wrong_is_refused_in_openai_s_shape(voices: Voices, prompt_wav: bytes) -> None:
    assert refused(voices.add(b"no audio")) == (400, "invalid_input", "audio_sample")
    assert refused(voices.add(prompt_wav, name="a/b")) == (400, "invalid_input", "name")
    assert refused(voices.add(prompt_wav, name="tiny-voice")) == (409, "voice_exists", "name")
    assert refused(voices.add(prompt_wav, text="t" * 5000)) == (400, "invalid_input", "text")
    assert refused(voices.add(prompt_wav, shared="perhaps")) == (400, "invalid_input", "shared")
    assert refused(voices.at("POST", data={"name": "mine"})) == (422, "invalid_input", "audio_sample")
    assert refused(voices.at("PATCH", "/mine", json={})) == (400, "invalid_input", "name")
    assert refused(voices.at("DELETE", "/tiny-voice")) == (409, "voice_exists", "name")
    assert refused(voices.at("GET", "/mine")) == (404, "unknown_voice", "name")
    assert voices.names() == ["tiny-voice"]


def test_a_name_is_taken_until_it_is_to_be_replaced(voices: Voices, prompt_wav: bytes) -> None:
    voices.add(prompt_wav)
    assert refused(voices.add(prompt_wav, text="Other words.")) == (409, "voice_exists", "name")
    assert voices.add(prompt_wav, text="Other words.", replace="true").json()["text"] == "Other words."


def test_a_voice_is_its_keys_own(keyed: dict[str, Voices], prompt_wav: bytes) -> None:
    alice, bob = keyed["alice"], keyed["bob"]
    assert alice.add(prompt_wav).json()["owner"] == "api/alice"
    assert (alice.names(), bob.names()) == (["tiny-voice", "mine"], ["tiny-voice"])
    assert refused(bob.at("GET", "/mine"))[0] == 404
    assert refused(bob.at("DELETE", "/mine"))[0] == 404
    speech = {"model": "tts-1", "voice": "mine", "input": TEXT}
    place = alice.url.removesuffix("/voices") + "/speech"
    assert requests.post(place, json=speech, headers=alice.headers).status_code == 200
    assert refused(requests.post(place, json=speech, headers=bob.headers)) == (400, "unknown_voice", "voice")
    assert requests.get(alice.url).status_code == 401
    assert alice.at("DELETE", "/mine").status_code == 200


def test_a_voice_is_its_keys_own_over_grpc_too(
    keyed_gateway: tuple[Gateway, dict[str, str]], keyed: dict[str, Voices], prompt_wav: bytes
) -> None:
    gateway, secrets = keyed_gateway
    alice, bob = ({"metadata": [("authorization", f"Bearer {secrets[name]}")]} for name in ("alice", "bob"))
    keyed["alice"].add(prompt_wav)
    manner = Manner(voice="mine")
    with dialled(gateway) as stub:
        listed = [stub.ListVoices(messages.ListVoicesRequest(), **who).voices for who in (alice, bob)]
        assert [[voice.name for voice in voices] for voices in listed] == [["tiny-voice", "mine"], ["tiny-voice"]]
        assert stub.Synthesize(Speech(text=TEXT, manner=manner), **alice).content
        turns = (messages.TalkRequest(begin=manner), messages.TalkRequest(text=TEXT))
        assert list(stub.Talk(iter(turns), **alice))
        for call in (stub.SynthesizeStream(Speech(text=TEXT, manner=manner), **bob), stub.Talk(iter(turns), **bob)):
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert told(caught.value)["error-code"] == "unknown_voice"
    assert keyed["alice"].at("DELETE", "/mine").status_code == 200


def test_a_shared_voice_is_for_all_to_use_and_its_keys_to_change(keyed: dict[str, Voices], prompt_wav: bytes) -> None:
    alice, bob = keyed["alice"], keyed["bob"]
    alice.add(prompt_wav, shared="true")
    assert bob.names() == ["tiny-voice", "mine"]
    assert bob.at("GET", "/mine/export").status_code == 200
    assert refused(bob.at("DELETE", "/mine"))[:2] == (403, "forbidden")
    assert refused(bob.at("PATCH", "/mine", json={"name": "his"}))[:2] == (403, "forbidden")
    assert alice.at("DELETE", "/mine").status_code == 200


def test_the_broker_hears_whose_voice_is_meant(tmp_path: Path) -> None:
    key, secret = new_key("carol", 16, 600)
    write_keys(tmp_path / "keys", [key])
    with FakeBroker() as broker, Gateway(broker.endpoint, f"gateway.keys={tmp_path}/keys") as gateway:
        carol = Voices(gateway.url, secret)
        carol.add(b"RIFF")
        speech = {"model": "tts-1", "voice": "mine", "input": TEXT, "response_format": "pcm"}
        requests.post(f"{gateway.url}/v1/audio/speech", json=speech, headers=carol.headers)
        assert broker.wait_for(AddVoice).owner == broker.wait_for(Synth).owner == "carol"
        with connect(f"{gateway.url.replace('http', 'ws')}/ws/speech", additional_headers=carol.headers) as socket:
            socket.send('{"voice": "mine"}')
            socket.send('{"text": "Hello.", "end": true}')
            while isinstance(socket.recv(), bytes):
                pass
        assert [asked.owner for asked in broker.all(Synth)] == ["carol"] * 2
        line = gateway.wait_for(lambda line: line.get("change") == "added")
        assert (line["voice"], line["key"]) == ("mine", "carol")


def test_making_voices_counts_as_a_request_of_its_key(tmp_path: Path) -> None:
    key, secret = new_key("carol", 16, 2)
    write_keys(tmp_path / "keys", [key])
    with FakeBroker() as broker, Gateway(broker.endpoint, f"gateway.keys={tmp_path}/keys") as gateway:
        carol = Voices(gateway.url, secret)
        statuses = [carol.add(b"RIFF", replace="true").status_code for _ in range(3)]
        assert statuses == [201, 201, 429]
        assert carol.at("GET").status_code == 200


def test_an_older_broker_has_preset_voices() -> None:
    with FakeBroker(version=2) as broker, Gateway(broker.endpoint) as gateway:
        assert Voices(gateway.url).names() == ["heart", "june"]
        assert Voices(gateway.url).add(b"RIFF").status_code == 502
