"""Nothing that clients say, and no key, stands in the broker's logs, whatever becomes of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.harness import synth
from tests.broker.peers import Crew, Peer, RunningApp, wait_for
from tests.transport.keys import Keyring

TEXT, PROMPT_TEXT, PROMPT = "a word in confidence", "what the prompt says", b"RIFF the voice of somebody"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[EventDict]]:
    """What is logged is caught instead of silenced."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def logs(quiet: list[EventDict]) -> list[EventDict]:
    return quiet


def confided(request_id: str) -> wire.Synth:
    return synth(request_id, text=TEXT, voice="", prompt_text=PROMPT_TEXT, prompt=PROMPT)


def test_texts_prompts_and_keys_are_in_no_log_line(tmp_path: Path, logs: list[EventDict]) -> None:
    keys = Keyring(tmp_path)
    alice, gpu = keys.admitted(Role.CLIENT, "alice"), keys.admitted(Role.WORKER, "gpu")
    with (
        RunningApp(keys=keys.broker, expiry_s=60, no_worker_s=60) as running,
        Sockets(SocketOptions(linger_ms=0), alice) as hers,
        Sockets(SocketOptions(linger_ms=0), gpu) as work,
    ):
        crew, client = Crew(work, running), Peer(hers, running.endpoints.clients)
        serve(client, crew)
        fail(client, crew)
        refuse(client)
        wait_for(lambda: "messages refused" in {line["event"] for line in logs}, client)
    said = str(logs)
    assert {line["event"] for line in logs} >= {"request received", "request closed", "messages refused"}
    for secret in (TEXT, PROMPT_TEXT, PROMPT.decode(), "confidence"):
        assert secret not in said
    for pair in (keys.broker.pair(Role.BROKER), alice.folder.pair(Role.CLIENT), gpu.folder.pair(Role.WORKER)):
        assert pair.secret.decode() not in said


def serve(client: Peer, crew: Crew) -> None:
    client.say(confided("served"))
    client.hear(wire.Accepted)
    crew.bring_to_decoding("served")
    crew.speak("served", 1)
    client.hear(wire.Audio)
    client.hear(wire.End)
    client.say(wire.EndAck("served"))


def fail(client: Peer, crew: Crew) -> None:
    """A request that its worker fails, quoting the text to the client."""
    client.say(confided("failed"))
    client.hear(wire.Accepted)
    crew.encode.hear(wire.EncodeWork)
    crew.encode.push(
        wire.StageFailed("failed", 0, crew.encode.epoch, "invalid_input", f"cannot say {TEXT}", "text", False)
    )
    assert TEXT in client.hear(wire.Error).text


def refuse(client: Peer) -> None:
    """Requests that are refused: as a whole, or because their frames make no sense."""
    client.say(dataclasses.replace(confided("refused"), voice="anna"))
    client.hear(wire.Error)
    head, body, *rest = wire.encode(confided("garbled"))
    for frames in ([head, body], [head, bytes(body)[:-1], *rest], [head, bytes(body) + TEXT.encode(), *rest]):
        assert client.link.broadcast(frames) == 1
        assert client.hear(wire.Error).code == "protocol"
