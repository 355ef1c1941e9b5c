"""The whole stack over CURVE: real broker, workers and client, each with its key, and others kept out."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lighttts import metrics
from lighttts.client import Client
from lighttts.errors import AccessDenied, Forbidden, UnknownVoice
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.peers import Peer, RunningApp, wait_for
from tests.system.stack import MODULES, ROOT, STAGES, START_TIMEOUT, STOP_TIMEOUT, TINY
from tests.transport.keys import Keyring


@pytest.fixture(autouse=True, scope="module")
def _no_logs() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def client_keys(keys: Keyring) -> Path:
    return keys.admitted(Role.CLIENT, "alice").folder.path


@pytest.fixture(scope="module")
def broker(keys: Keyring) -> Iterator[RunningApp]:
    voices = keys.broker.path.parent / "voices"
    options = SocketOptions(handshake_ms=500)
    with RunningApp(keys=keys.broker, options=options, voices_directory=voices, gateways=("gate",)) as running:
        yield running


@pytest.fixture(scope="module")
def workers(broker: RunningApp, keys: Keyring, client_keys: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A worker of each stage, as a process with its own key."""
    processes = {}
    for stage in STAGES:
        folder = keys.admitted(Role.WORKER, stage).folder
        settings = [
            f"broker.workers={broker.endpoints.workers}",
            f"broker.results={broker.endpoints.results}",
            f"security.keys={folder.path}",
            f"model.directory={TINY}",
            "model.device=cpu",
            f"{stage}.metrics_port=null",
        ]
        flags = [flag for setting in settings for flag in ("--set", setting)]
        with (folder.path / "log").open("ab") as log:
            command = [sys.executable, "-m", MODULES[stage], *flags]
            processes[stage] = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        with Client(broker.endpoints.clients, keys=client_keys) as client:
            deadline = time.monotonic() + START_TIMEOUT
            while {row.stage for row in client.status().workers if row.state == "ready"} != set(STAGES):
                assert all(process.poll() is None for process in processes.values())
                assert time.monotonic() < deadline
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(STOP_TIMEOUT)


def refused(socket_name: str) -> float:
    return metrics.connections_refused.labels(socket_name)._value.get()


def speaks(broker: RunningApp, client_keys: Path) -> bool:
    with Client(broker.endpoints.clients, keys=client_keys) as client:
        return bool(client.synthesize("Hello there.", seed=1).audio().size)


@pytest.mark.usefixtures("workers")
def test_speech_is_made_over_curve(broker: RunningApp, client_keys: Path) -> None:
    assert speaks(broker, client_keys)


@pytest.mark.usefixtures("workers")
def test_others_are_kept_out_and_disturb_nobody(broker: RunningApp, keys: Keyring, client_keys: Path) -> None:
    host, _, port = broker.endpoints.clients.removeprefix("tcp://").partition(":")
    stranger = keys.stranger(Role.CLIENT, "mallory").folder.path
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"\xff" * 10_000)
        for outsider in (None, stranger):
            with (
                Client(broker.endpoints.clients, keys=outsider, connect_timeout=4.0) as client,
                pytest.raises(AccessDenied),
            ):
                client.synthesize("Let me in.", seed=1).audio()
        assert speaks(broker, client_keys)


@pytest.mark.usefixtures("workers")
def test_a_client_s_key_makes_no_worker(broker: RunningApp, keys: Keyring, client_keys: Path) -> None:
    alice = KeyFolder(client_keys)
    forged = keys.stranger(Role.WORKER, "mallory")
    forged.folder.store(Role.WORKER, "mallory", alice.pair(Role.CLIENT), replace=True)
    options = SocketOptions(linger_ms=0, handshake_ms=500)
    proof = keys.admitted(Role.CLIENT, "watcher")
    with Sockets(options, forged) as others, Sockets(security=proof) as inside:
        links = [others.dealer(broker.endpoints.workers, b"mallory"), others.push(broker.endpoints.results)]
        before = refused("workers"), refused("results")
        client = Peer(inside, broker.endpoints.clients)
        wait_for(lambda: refused("workers") > before[0] and refused("results") > before[1], client)
        assert not any(link.broadcast([b"x"]) for link in links)


@pytest.mark.usefixtures("workers")
def test_a_voice_belongs_to_the_key_that_added_it(broker: RunningApp, keys: Keyring, prompt_wav: bytes) -> None:
    def client(name: str) -> Client:
        return Client(broker.endpoints.clients, keys=keys.admitted(Role.CLIENT, name).folder.path)

    with client("owner") as owner, client("other") as other, client("gate") as gate:
        assert owner.add_voice("mine", prompt_wav, "What I say.").owner == "owner"
        owner.synthesize("Hello there.", voice="mine", seed=1).audio()
        with pytest.raises(UnknownVoice):
            other.show_voice("mine")
        with pytest.raises(UnknownVoice):
            other.synthesize("Hello there.", voice="mine").audio()
        with pytest.raises(UnknownVoice):
            gate.show_voice("mine", owner="owner")
        with pytest.raises(Forbidden, match=r"broker\.gateways"):
            other.add_voice("mine", prompt_wav, owner="somebody")
        assert gate.add_voice("mine", prompt_wav, owner="somebody", shared=True).owner == "api/somebody"
        assert other.show_voice("mine").owner == "api/somebody"
        with pytest.raises(Forbidden):
            other.remove_voice("mine")
        other.synthesize("Hello there.", voice="mine", seed=1).audio()
        gate.remove_voice("mine", owner="somebody")
        owner.remove_voice("mine")


def test_no_process_writes_a_secret_into_its_log(workers: dict[str, object], keys: Keyring) -> None:
    for stage in workers:
        folder = KeyFolder(keys.broker.path.parent / f"worker-{stage}")
        log = (folder.path / "log").read_text()
        assert "worker started" in log
        assert folder.pair(Role.WORKER).secret.decode() not in log
