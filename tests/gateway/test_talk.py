"""Text in, audio out over WebSockets, with a real client of them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from lighttts.client import AsyncClient
from lighttts.gateway import talk
from lighttts.gateway.keys import new_key, write_keys
from lighttts.gateway.quotas import Quotas
from lighttts.gateway.speech import Speaker, Wish
from lighttts.gateway.talk import Conversation
from lighttts.gateway.texts import Said
from lighttts.transport.wire import Cancel, Finish, Flush, Message, Piece, Synth
from tests.client.fake_broker import FakeBroker, begin_only
from tests.gateway.process import Gateway
from tests.system.stack import Stack


def dial(gateway: Gateway, path: str = "/ws/speech", **more: Any) -> ClientConnection:
    return connect(gateway.url.replace("http", "ws") + path, proxy=None, **more)


def say(socket: ClientConnection, **message: object) -> None:
    socket.send(json.dumps(message))


def heard(socket: ClientConnection) -> tuple[bytes, dict[str, Any]]:
    """All audio up to the message in words."""
    audio = b""
    while isinstance(said := socket.recv(), bytes):
        audio += said
    return audio, json.loads(said)


@pytest.fixture
def fake() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        yield broker


@pytest.fixture
def before_fake(fake: FakeBroker) -> Iterator[Gateway]:
    with Gateway(fake.endpoint) as running:
        yield running


def test_sentences_are_spoken_while_the_text_is_still_being_written(gateway: Gateway) -> None:
    with dial(gateway) as socket:
        say(socket, voice="tiny-voice")
        for piece in ("Hel", "lo there. ", "How are"):
            say(socket, text=piece)
        first = socket.recv()
        assert isinstance(first, bytes)
        say(socket, text=" you?", end=True)
        rest, done = heard(socket)
    assert len(np.frombuffer(first + rest, "<i2")) == done["tokens"] * 960
    assert done["type"] == "done"


def test_a_text_is_one_request_that_gets_the_pieces_as_they_come(before_fake: Gateway, fake: FakeBroker) -> None:
    with dial(before_fake) as socket:
        say(socket, voice="june", speed=1.5, instructions="Softly.")
        say(socket, text="Pi is 3.14")
        asked = fake.wait_for(Synth)
        assert (asked.text, asked.pieces) == ("", "auto")
        assert (asked.voice, asked.speed, asked.instruct) == ("june", 1.5, "Softly.")
        assert fake.wait_for(Piece).text == "Pi is 3.14"
        say(socket, text=" or so.", flush=True)
        fake.wait_for(Flush)
        say(socket, text=" And more", end=True)
        assert heard(socket)[1]["type"] == "done"
    fake.wait_for(Finish)
    assert "".join(piece.text for piece in fake.all(Piece)) == "Pi is 3.14 or so. And more"
    assert len(fake.all(Synth)) == 1


def test_after_a_pause_another_request_goes_on(fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[Message]:
        async with AsyncClient(fake.endpoint) as client:
            said = [Said("One."), None, Said("Two.", end=True)]
            socket = Silent(said, lambda: fake.wait_for(Finish))
            speaker = Speaker(client, Quotas())
            await Conversation(socket, speaker).hold(Wish(""), "pcm")
        return [message for message in fake.received if isinstance(message, Synth | Piece | Finish)]

    monkeypatch.setattr(talk, "PAUSE_S", 0.05)
    assert [type(message) for message in asyncio.run(run())] == [Synth, Piece, Finish, Synth, Piece, Finish]


class Silent:
    """A peer; a None among what is said is a pause, until `over` returns."""

    def __init__(self, said: list[Said | None], over: Callable[[], object]) -> None:
        self._said = said
        self._over = over

    async def said(self) -> Said:
        if not self._said:
            await asyncio.Event().wait()
        said = self._said.pop(0)
        if said is None:
            await asyncio.to_thread(self._over)
            return await self.said()
        return said

    async def send(self, piece: bytes, sample_rate: int) -> None:
        """Audio."""


def test_a_conversation_is_one_file_of_its_format(gateway: Gateway) -> None:
    with dial(gateway) as socket:
        say(socket, voice="tiny-voice", response_format="mp3")
        say(socket, text="Hello there. How are you? ")
        say(socket, end=True)
        audio, _ = heard(socket)
    with av.open(io.BytesIO(audio)) as container:
        assert container.format.name == "mp3"


def test_marks_alone_are_not_spoken(before_fake: Gateway, fake: FakeBroker) -> None:
    with dial(before_fake) as socket:
        say(socket)
        say(socket, text="... \n - \n", end=True)
        assert heard(socket) == (b"", {"type": "done", "tokens": 0})
    assert not fake.all(Synth)


def test_lighttts_bistream(gateway: Gateway, prompt_wav: bytes) -> None:
    with dial(gateway, "/inference_zero_shot_bistream") as socket:
        say(socket, prompt_text="hello world", tts_model_name="default")
        socket.send(prompt_wav)
        for sentence in ["The quick brown fox jumps over the lazy dog. "] * 3:
            say(socket, tts_text=sentence)
        say(socket, finish=True)
        parts = [*socket]
    assert all(isinstance(part, bytes) for part in parts), parts[-1]
    audio = b"".join(part for part in parts if isinstance(part, bytes))
    assert len(np.frombuffer(audio, "<i2")) > 0


def test_a_client_that_leaves_cancels_what_is_being_spoken() -> None:
    with FakeBroker(script={Synth: begin_only}) as broker, Gateway(broker.endpoint) as gateway:
        with dial(gateway) as socket:
            say(socket, voice="heart")
            say(socket, text="Hello.", end=True)
            assert socket.recv()
        broker.wait_for(Cancel)
        line = gateway.wait_for(lambda line: line["event"] == "request")
        assert (line["method"], line["status"], line["error"]) == ("WEBSOCKET", 101, "client_gone")


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (['{"voice": "nobody"}', '{"text": "Hello.", "end": true}'], "unknown_voice"),
        (['{"vioce": "tiny-voice"}'], "invalid_input"),
        (["no json"], "invalid_input"),
        ([b"binary"], "invalid_input"),
        (["{}", json.dumps({"text": "x" * 65_537})], "invalid_input"),
    ],
)
def test_what_is_wrong_is_told_before_the_connection_is_closed(
    gateway: Gateway, messages: list[str | bytes], code: str
) -> None:
    with dial(gateway) as socket:
        for message in messages:
            socket.send(message)
        _, said = heard(socket)
        assert said.get("code", said["type"]) == code
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1008


def test_one_connection_serves_many_texts(gateway: Gateway) -> None:
    with dial(gateway, additional_headers={"X-Request-ID": "many"}) as socket:
        for style in ({"voice": "tiny-voice"}, {"response_format": "wav"}, {"model": "default", "speed": 1.5}):
            say(socket, **style)
            say(socket, text="Hello there.", end=True)
            audio, done = heard(socket)
            assert audio
            assert done["type"] == "done"
    assert "error" not in gateway.wait_for(lambda line: line.get("request_id") == "many")


def test_an_unknown_model_is_refused(gateway: Gateway, prompt_wav: bytes) -> None:
    with dial(gateway) as socket:
        say(socket, model="angry")
        assert heard(socket)[1]["code"] == "model_not_found"
    with dial(gateway, "/inference_zero_shot_bistream") as socket:
        say(socket, prompt_text="hello world", tts_model_name="angry")
        socket.send(prompt_wav)
        assert "angry" in heard(socket)[1]["error"]


def test_only_holders_of_keys_and_pages_of_its_own_are_connected(stack: Stack, tmp_path: Path) -> None:
    key, secret = new_key("alice", 1, 600)
    write_keys(tmp_path / "api-keys", [key])
    allowed = {"Authorization": f"Bearer {secret}"}
    settings = (f"gateway.keys={tmp_path}/api-keys", "gateway.cors_origins=https://example.org")
    with Gateway(stack.endpoint, *settings) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            dial(gateway)
        assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            dial(gateway, additional_headers=allowed, origin="https://example.com")
        assert refused.value.response.status_code == 403
        for origin in ("https://example.org", gateway.url):
            with dial(gateway, additional_headers=allowed, origin=origin) as socket:
                say(socket)
                say(socket, text="Hello.", end=True)
                assert heard(socket)[1]["type"] == "done"
