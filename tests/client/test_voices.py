"""Registered voices by the client library: each call asks what it should and returns what the broker says."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.client import AsyncClient, Client, RegisteredVoice
from lighttts.errors import InvalidInput, ProtocolError, UnknownVoice, VoiceExists
from lighttts.transport.wire import OLDEST, AddVoice, ListVoices, Synth, VoiceAction
from tests.client.fake_broker import FakeBroker

WAV = b"RIFF of anna"
TEXT = "What I say."


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        yield broker


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client(broker.endpoint) as client:
        yield client


def test_a_voice_is_added_and_listed_after_the_preset_ones(client: Client, broker: FakeBroker) -> None:
    added = client.add_voice("anna", WAV, TEXT, shared=True)
    assert isinstance(added, RegisteredVoice)
    assert (added.name, added.shared, added.size, added.text) == ("anna", True, len(WAV), TEXT)
    assert client.voices() == ("heart", "june", "anna")
    assert client.registered_voices() == (added._replace(text=""),)
    (asked,) = broker.all(AddVoice)
    assert (asked.prompt, asked.prompt_text, asked.shared, asked.replace) == (WAV, TEXT, True, False)


@pytest.mark.parametrize("kind", ["bytes", "path", "file"])
def test_a_recording_is_bytes_a_path_or_an_open_file(client: Client, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "anna.wav"
    path.write_bytes(WAV)
    assert client.add_voice("anna", {"bytes": WAV, "path": path, "file": io.BytesIO(WAV)}[kind]).size == len(WAV)


def test_a_voice_is_shown_renamed_and_removed(client: Client) -> None:
    added = client.add_voice("anna", WAV, TEXT)
    assert client.show_voice("anna") == added
    assert client.rename_voice("anna", "anne").name == "anne"
    with pytest.raises(UnknownVoice):
        client.show_voice("anna")
    assert client.remove_voice("anne").name == "anne"
    assert client.voices() == ("heart", "june")


def test_what_is_exported_can_be_imported_also_under_another_name(client: Client, tmp_path: Path) -> None:
    client.add_voice("anna", WAV, TEXT)
    file = tmp_path / "anna.ltv"
    file.write_bytes(client.export_voice("anna"))
    client.remove_voice("anna")
    assert client.import_voice(file).text == TEXT
    with file.open("rb") as opened:
        assert client.import_voice(opened, "bert").name == "bert"
    with pytest.raises(VoiceExists):
        client.import_voice(file)
    client.import_voice(file, replace=True)


def test_what_is_no_exported_voice_is_refused_before_anything_is_sent(client: Client, broker: FakeBroker) -> None:
    with pytest.raises(InvalidInput, match="no voice that LightTTS has exported"):
        client.import_voice(os.urandom(100))
    with pytest.raises(InvalidInput, match="cannot be read"):
        client.import_voice("no/such/file")
    assert broker.all(AddVoice) == []


@pytest.mark.parametrize(
    ("name", "text", "recording"),
    [("", "", WAV), ("a/b", "", WAV), ("a", "t" * 4097, WAV), ("a", "", b"")],
    ids=["no name", "a path", "a long text", "no recording"],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(
    client: Client, broker: FakeBroker, name: str, text: str, recording: bytes
) -> None:
    with pytest.raises(InvalidInput):
        client.add_voice(name, recording, text)
    assert broker.all(AddVoice) == []


def test_the_brokers_refusal_is_a_typed_error(client: Client) -> None:
    with pytest.raises(InvalidInput, match="no audio") as refused:
        client.add_voice("anna", b"nothing")
    assert refused.value.field == "prompt"


def test_a_gateway_says_whose_voices_are_meant(client: Client, broker: FakeBroker) -> None:
    client.add_voice("anna", WAV, owner="alice")
    client.show_voice("anna", owner="alice")
    client.voices(owner="alice")
    client.synthesize("Hello.", voice="anna", owner="alice").audio()
    assert {m.owner for m in (*broker.all(AddVoice), *broker.all(VoiceAction), *broker.all(ListVoices))} == {"alice"}
    assert broker.wait_for(Synth).owner == "alice"


def test_an_older_broker_is_asked_for_what_it_knows_and_not_for_more() -> None:
    with FakeBroker(version=OLDEST) as broker, Client(broker.endpoint) as client:
        assert client.voices(owner="alice") == ("heart", "june")
        assert len(client.synthesize("Hello.", voice="heart", owner="alice").audio())
        with pytest.raises(ProtocolError, match="upgrade"):
            client.add_voice("anna", WAV)
        assert client.voices() == ("heart", "june")


def test_the_same_for_asyncio(broker: FakeBroker) -> None:
    async def everything() -> None:
        async with AsyncClient(broker.endpoint) as client:
            added = await client.add_voice("anna", WAV, TEXT)
            assert await client.show_voice("anna") == added
            assert await client.registered_voices() == (added._replace(text=""),)
            content = await client.export_voice("anna")
            assert (await client.rename_voice("anna", "anne")).name == "anne"
            assert (await client.import_voice(content)).name == "anna"
            assert (await client.remove_voice("anne")).name == "anne"
            assert await client.voices() == ("heart", "june", "anna")
            with pytest.raises(UnknownVoice):
                await client.show_voice("anne")

    asyncio.run(everything())
