"""A key that is removed while its owner is connected: the owner is out within seconds, everyone else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from structlog.testing import capture_logs
from structlog.typing import EventDict

from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.harness import audio, encoded, synth, tokens
from tests.broker.peers import Crew, Peer, RunningApp, Worker, wait_for
from tests.transport.keys import Keyring


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[EventDict]]:
    """What is logged is caught instead of silenced."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def logs(quiet: list[EventDict]) -> list[EventDict]:
    return quiet


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def running(keys: Keyring) -> Iterator[RunningApp]:
    with RunningApp(keys=keys.broker, expiry_s=60, no_worker_s=60) as running:
        yield running


def of(keys: Keyring, role: Role, name: str) -> Sockets:
    return Sockets(SocketOptions(linger_ms=0), keys.admitted(role, name))


def ended(logs: list[EventDict]) -> set[tuple[str, str]]:
    """The connections of whom were ended, by socket and name."""
    return {(line["socket"], line["user"]) for line in logs if line["event"].startswith("connection ended")}


def test_the_work_of_an_expelled_client_is_given_up_and_its_words_are_not_heard(
    keys: Keyring, running: RunningApp, logs: list[EventDict]
) -> None:
    with (
        of(keys, Role.CLIENT, "alice") as hers,
        of(keys, Role.CLIENT, "bob") as his,
        of(keys, Role.WORKER, "w") as work,
    ):
        crew = Crew(work, running)
        alice, bob = (Peer(sockets, running.endpoints.clients) for sockets in (hers, his))
        alice.say(synth("hers"))
        alice.hear(wire.Accepted)
        crew.bring_to_decoding("hers")
        keys.broker.forbid(Role.CLIENT, "alice")
        wait_for(lambda: ended(logs) == {("clients", "alice")}, bob)
        assert crew.decode.hear(wire.Abort).request_id == "hers"
        bob.say(synth("his"))
        bob.hear(wire.Accepted)
        crew.bring_to_decoding("his")
        crew.speak("his", 2)
        assert [bob.hear(wire.Audio).seq for _ in range(2)] == [0, 1]
        assert not alice.link.socket.poll(0, zmq.POLLOUT)
        assert alice.quiet()


def test_an_expelled_worker_is_replaced_and_its_results_are_not_taken(
    keys: Keyring, running: RunningApp, logs: list[EventDict]
) -> None:
    with (
        of(keys, Role.CLIENT, "alice") as hers,
        of(keys, Role.WORKER, "good") as good,
        of(keys, Role.WORKER, "bad") as bad,
    ):
        encode, llm = (Worker(good, running, stage) for stage in ("encode", "llm"))
        stolen = Worker(bad, running, "decode")
        alice = Peer(hers, running.endpoints.clients)
        alice.say(synth("r"))
        alice.hear(wire.Accepted)
        encode.hear(wire.EncodeWork)
        encode.push(encoded("r", encode.epoch))
        llm.hear(wire.GenerateWork)
        llm.push(tokens("r", llm.epoch, 0, last=True))
        stolen.hear(wire.DecodeWork)
        stolen.push(audio("r", stolen.epoch, 0))
        alice.hear(wire.Audio)
        keys.broker.forbid(Role.WORKER, "bad")
        wait_for(lambda: ended(logs) == {("workers", "bad"), ("results", "bad")}, alice)
        assert status(alice) == {"encode", "llm"}
        successor = Successor(good, running)
        work = successor.hear(wire.DecodeWork)
        assert (work.request_id, work.attempt, work.seq) == ("r", 1, 1)
        successor.push(replace(audio("r", successor.epoch, 1, last=True), attempt=1))
        assert alice.hear(wire.Audio).seq == 1
        alice.hear(wire.End)
        assert not stolen.link.socket.poll(0, zmq.POLLOUT)


class Successor(Worker):
    """Another decode worker."""

    def __init__(self, sockets: Sockets, running: RunningApp) -> None:
        Peer.__init__(self, sockets, running.endpoints.workers, b"successor")
        self.epoch = 99
        self._push = sockets.push(running.endpoints.results)
        self.say(wire.Register("successor", self.epoch, "decode", "", "", 24000, ()))
        self.hear(wire.Registered)
        self.say(wire.Grant(self.epoch, 1))


def status(client: Peer) -> set[str]:
    """The stages that have workers."""
    client.say(wire.GetStatus(0))
    return {worker.stage for worker in client.hear(wire.Status).workers}


def test_a_key_moved_to_another_name_goes_on_by_the_second_one(
    keys: Keyring, running: RunningApp, logs: list[EventDict]
) -> None:
    with of(keys, Role.CLIENT, "first") as old, of(keys, Role.CLIENT, "second") as new:
        before, after = (Peer(sockets, running.endpoints.clients) for sockets in (old, new))
        for peer in (before, after):
            status(peer)
        keys.broker.forbid(Role.CLIENT, "first")
        wait_for(lambda: ended(logs) == {("clients", "first")}, after)
        assert status(after) == set()
