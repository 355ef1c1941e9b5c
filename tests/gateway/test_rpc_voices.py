"""Registered voices over gRPC: added, spoken with, changed, exported and imported by their key's holder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import requests

from lighttts.gateway.keys import new_key, write_keys
from lighttts.transport.wire import MAX_AUDIO_FILE, AddVoice, VoiceFailed
from lighttts.voice_file import VoiceFile
from tests.client.fake_broker import FakeBroker
from tests.gateway.process import Gateway
from tests.gateway.stubs import Manner, Speech, dialled, messages, told
from tests.system.stack import Stack

RPC = "gateway.grpc_port=0"
TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."
SAID = "What I say in it."
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXISTS, FORBIDDEN = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED


class Voices:
    """What a program does with the calls for voices, with a key or without."""

    def __init__(self, stub: Any, secret: str = "") -> None:
        self.stub = stub
        self.metadata = [("authorization", f"Bearer {secret}")] if secret else []

    def add(self, prompt: bytes, name: str = "mine", prompt_text: str = SAID, **more: bool) -> Any:
        request = messages.AddVoiceRequest(name=name, prompt=prompt, prompt_text=prompt_text, **more)
        return self.stub.AddVoice(request, metadata=self.metadata)

    def show(self, name: str = "mine") -> Any:
        return self.stub.ShowVoice(messages.ShowVoiceRequest(name=name), metadata=self.metadata)

    def rename(self, to: str, name: str = "mine") -> Any:
        return self.stub.RenameVoice(messages.RenameVoiceRequest(name=name, to=to), metadata=self.metadata)

    def remove(self, name: str = "mine") -> Any:
        return self.stub.RemoveVoice(messages.RemoveVoiceRequest(name=name), metadata=self.metadata)

    def export(self, name: str = "mine") -> bytes:
        return b"".join(self.pieces(name))

    def pieces(self, name: str = "mine") -> list[bytes]:
        call = self.stub.ExportVoice(messages.ExportVoiceRequest(name=name), metadata=self.metadata)
        return [piece.content for piece in call]

    def take(self, file: bytes, name: str = "", **more: bool) -> Any:
        return self.stub.ImportVoice(messages.ImportVoiceRequest(file=file, name=name, **more), metadata=self.metadata)

    def listed(self) -> list[Any]:
        return list(self.stub.ListVoices(messages.ListVoicesRequest(), metadata=self.metadata).voices)

    def names(self) -> list[str]:
        return [voice.name for voice in self.listed()]

    def speak(self, name: str = "mine") -> bytes:
        content: bytes = self.stub.Synthesize(
            Speech(text=TEXT, manner=Manner(voice=name)), metadata=self.metadata
        ).content
        return content


def refused(ask: Callable[..., object], *given: Any, **more: Any) -> tuple[grpc.StatusCode, str, str]:
    """How a call fails: its status, its code, and the field that is why."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(*given, **more)
    error = caught.value
    assert error.details()
    return error.code(), told(error)["error-code"], told(error).get("error-field", "")


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    with Gateway(stack.endpoint, RPC) as running:
        yield running


@pytest.fixture
def voices(gateway: Gateway) -> Iterator[Voices]:
    """At a gateway without keys; whatever a test adds goes with it."""
    with dialled(gateway) as stub:
        voices = Voices(stub)
        yield voices
        for voice in voices.listed():
            if voice.sha256:
                voices.remove(voice.name)


@pytest.fixture(scope="module")
def keyed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Voices, Voices]]:
    """What two users of a gateway with keys do."""
    path = tmp_path_factory.mktemp("keys") / "api-keys"
    made = [new_key(name, 16, 6000) for name in ("alice", "bob")]
    write_keys(path, [key for key, _ in made])
    with Gateway(stack.endpoint, f"gateway.keys={path}", RPC) as gateway, dialled(gateway) as stub:
        alice, bob = (Voices(stub, secret) for _, secret in made)
        yield alice, bob


@pytest.fixture
def fake() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        yield broker


@pytest.fixture
def before_fake(fake: FakeBroker) -> Iterator[Voices]:
    with Gateway(fake.endpoint, RPC) as running, dialled(running) as stub:
        yield Voices(stub)


def test_a_voice_is_added_shown_spoken_with_renamed_and_removed(voices: Voices, prompt_wav: bytes) -> None:
    added = voices.add(prompt_wav)
    assert (added.name, added.owner, added.shared, added.prompt_text) == ("mine", "", False, SAID)
    assert (added.bytes, added.sha256) == (len(prompt_wav), hashlib.sha256(prompt_wav).hexdigest())
    assert added.created > 1_700_000_000
    assert voices.show() == added
    preset, listed = voices.listed()
    assert preset == messages.Voice(name="tiny-voice")
    assert (listed.name, listed.sha256, listed.prompt_text) == ("mine", added.sha256, "")
    assert voices.speak()
    assert voices.rename("my own").name == "my own"
    assert refused(voices.show) == (NOT_FOUND, "unknown_voice", "name")
    assert voices.remove("my own").name == "my own"
    assert voices.names() == ["tiny-voice"]


def test_what_one_door_has_added_the_other_has(gateway: Gateway, voices: Voices, prompt_wav: bytes) -> None:
    place = f"{gateway.url}/v1/audio/voices"
    voices.add(prompt_wav)
    shown = requests.get(f"{place}/mine").json()
    assert (shown["text"], shown["sha256"]) == (SAID, hashlib.sha256(prompt_wav).hexdigest())
    form = {"name": "other", "text": SAID}
    assert requests.post(place, data=form, files={"audio_sample": prompt_wav}).status_code == 201
    assert voices.show("other").prompt_text == SAID


def test_a_voice_travels_as_a_file(gateway: Gateway, voices: Voices, prompt_wav: bytes) -> None:
    added = voices.add(prompt_wav)
    file = voices.export()
    assert file == requests.get(f"{gateway.url}/v1/audio/voices/mine/export").content
    voices.remove()
    back = voices.take(file)
    assert (back.name, back.sha256, back.prompt_text) == (added.name, added.sha256, added.prompt_text)
    other = voices.take(file, "other", shared=True)
    assert (other.name, other.shared) == ("other", True)
    voices.add(prompt_wav, prompt_text="Other words.", replace=True)
    assert refused(voices.take, file) == (EXISTS, "voice_exists", "name")
    assert voices.take(file, replace=True).prompt_text == SAID


def test_a_large_voice_comes_in_pieces_that_every_client_takes(before_fake: Voices) -> None:
    recording = b"RIFF" + bytes(MAX_AUDIO_FILE - 4)
    before_fake.add(recording)
    pieces = before_fake.pieces()
    assert max(map(len, pieces)) <= 1 << 20
    assert b"".join(pieces) == VoiceFile("mine", SAID, recording).packed()
    assert before_fake.take(b"".join(pieces), "other").bytes == MAX_AUDIO_FILE


def test_a_name_is_taken_until_it_is_to_be_replaced(voices: Voices, prompt_wav: bytes) -> None:
    voices.add(prompt_wav)
    assert refused(voices.add, prompt_wav, prompt_text="Other words.") == (EXISTS, "voice_exists", "name")
    assert voices.add(prompt_wav, prompt_text="Other words.", replace=True).prompt_text == "Other words."


def test_what_is_wrong_is_refused_by_the_name_of_its_field(voices: Voices, prompt_wav: bytes) -> None:
    assert refused(voices.add, b"") == (INVALID, "invalid_input", "prompt")
    assert refused(voices.add, b"no audio") == (INVALID, "invalid_input", "prompt")
    assert refused(voices.add, bytes(MAX_AUDIO_FILE + 1)) == (INVALID, "invalid_input", "prompt")
    assert refused(voices.add, prompt_wav, "") == (INVALID, "invalid_input", "name")
    assert refused(voices.add, prompt_wav, "a/b") == (INVALID, "invalid_input", "name")
    assert refused(voices.add, prompt_wav, "ü" * 65) == (INVALID, "invalid_input", "name")
    assert refused(voices.add, prompt_wav, prompt_text="t" * 5000) == (INVALID, "invalid_input", "prompt_text")
    assert refused(voices.add, prompt_wav, "tiny-voice") == (EXISTS, "voice_exists", "name")
    for ask in (voices.show, voices.remove, voices.pieces):
        assert refused(ask, "nobody") == (NOT_FOUND, "unknown_voice", "name")
        assert refused(ask, "") == (INVALID, "invalid_input", "name")
    assert refused(voices.rename, "else", "nobody") == (NOT_FOUND, "unknown_voice", "name")
    assert refused(voices.remove, "tiny-voice") == (EXISTS, "voice_exists", "name")
    voices.add(prompt_wav)
    assert refused(voices.rename, "") == (INVALID, "invalid_input", "to")
    assert refused(voices.rename, "a\nb") == (INVALID, "invalid_input", "to")
    assert refused(voices.rename, "tiny-voice") == (EXISTS, "voice_exists", "to")
    file = voices.export()
    for damaged in (b"", b"no voice", file[:-1], file[:-1] + b"!"):
        assert refused(voices.take, damaged, "other") == (INVALID, "invalid_input", "file")
    assert voices.names() == ["tiny-voice", "mine"]


def test_a_voice_is_its_keys_own(keyed: tuple[Voices, Voices], prompt_wav: bytes) -> None:
    alice, bob = keyed
    assert alice.add(prompt_wav).owner == "api/alice"
    assert (alice.names(), bob.names()) == (["tiny-voice", "mine"], ["tiny-voice"])
    for ask in (bob.show, bob.remove, bob.pieces):
        assert refused(ask) == (NOT_FOUND, "unknown_voice", "name")
    assert refused(bob.speak) == (INVALID, "unknown_voice", "voice")
    assert refused(Voices(alice.stub).names) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key", "")
    assert refused(Voices(alice.stub).remove) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key", "")
    assert alice.remove().name == "mine"


def test_a_shared_voice_is_for_all_to_use_and_its_keys_to_change(
    keyed: tuple[Voices, Voices], prompt_wav: bytes
) -> None:
    alice, bob = keyed
    alice.add(prompt_wav, shared=True)
    assert bob.names() == ["tiny-voice", "mine"]
    assert bob.speak()
    assert bob.export() == alice.export()
    assert refused(bob.remove)[:2] == (FORBIDDEN, "forbidden")
    assert refused(bob.rename, "his")[:2] == (FORBIDDEN, "forbidden")
    assert alice.remove().shared


def test_changes_are_told_to_the_broker_and_the_log_and_count_as_requests(
    fake: FakeBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("keys") / "api-keys"
    key, secret = new_key("carol", 16, 3)
    write_keys(path, [key])
    with Gateway(fake.endpoint, RPC, f"gateway.keys={path}") as gateway, dialled(gateway) as stub:
        carol = Voices(stub, secret)
        carol.add(b"RIFF", shared=True, replace=True)
        asked = fake.wait_for(AddVoice)
        assert (asked.owner, asked.name, asked.prompt_text) == ("carol", "mine", SAID)
        assert (asked.shared, asked.replace) == (True, True)
        carol.rename("other")
        carol.remove("other")
        for change, name in (("added", "mine"), ("renamed", "other"), ("removed", "other")):
            line = gateway.wait_for(lambda line, change=change: line.get("change") == change)
            assert (line["voice"], line["key"]) == (name, "carol")
        assert refused(carol.add, b"RIFF") == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_requests", "")
        assert carol.names()


def test_no_room_for_a_voice_is_told_apart_from_a_slip() -> None:
    def full(broker: FakeBroker, peer: bytes, message: AddVoice) -> None:
        broker.send(peer, VoiceFailed(message.query_id, "quota_exceeded", "no room", "", False, 0))

    with FakeBroker(script={AddVoice: full}) as fake, Gateway(fake.endpoint, RPC) as gateway, dialled(gateway) as stub:
        assert refused(Voices(stub).add, b"RIFF") == (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota_exceeded", "")


def test_an_older_broker_has_preset_voices() -> None:
    with FakeBroker(version=2) as fake, Gateway(fake.endpoint, RPC) as gateway, dialled(gateway) as stub:
        voices = Voices(stub)
        assert voices.names() == ["heart", "june"]
        assert refused(voices.add, b"RIFF")[0] is grpc.StatusCode.INTERNAL
