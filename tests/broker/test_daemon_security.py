"""What the daemon makes of section security of its configuration."""

from __future__ import annotations

import json
import select
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Sockets
from lighttts.transport.watch import Connection, connection_event
from tests.broker.peers import PATIENCE_MS, Peer
from tests.pitfalls.rig import broker_process, told
from tests.transport.keys import Keyring

OPTIONS = SocketOptions(linger_ms=0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        yield Path(short)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def places(folder: Path, clients: str) -> list[str]:
    return [f"clients={clients}", f"workers=ipc://{folder}/workers", f"results=ipc://{folder}/results"]


def is_served(client: Peer) -> bool:
    client.say(wire.GetStatus(1))
    return client.hear(wire.Status).query_id == 1


def first_event(watch: Link) -> Connection:
    assert watch.socket.poll(PATIENCE_MS)
    return connection_event(watch.socket.recv_multipart())


def test_with_keys_it_speaks_to_none_who_has_none(
    folder: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, at = Keyring(tmp_path), f"tcp://127.0.0.1:{port}"
    alice = keys.admitted(Role.CLIENT, "alice")
    monkeypatch.setenv("LIGHTTTS_SECURITY__KEYS", str(keys.broker.path))
    with broker_process(*places(folder, at)), Sockets(OPTIONS, alice) as inside, Sockets(OPTIONS) as outside:
        assert is_served(Peer(inside, at))
        plain, watch = outside.watched_dealer(at)
        assert first_event(watch) in (Connection.MISMATCHED, Connection.REFUSED)
        assert not plain.socket.poll(0, zmq.POLLOUT)


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_its_ipc_sockets_have_the_permissions_that_are_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("LIGHTTTS_SECURITY__IPC_MODE", f"'{mode:04o}'")
    with broker_process(*places(folder, f"ipc://{folder}/clients"), limit="umask 077"):
        for name in ("clients", "workers", "results"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == mode


def test_it_holds_as_many_connections_as_are_set(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTTTS_SECURITY__CONNECTIONS", "20")
    with broker_process(*places(folder, f"tcp://127.0.0.1:{port}")) as broker, ExitStack() as crowd:
        for _ in range(24):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert select.select([broker.stderr], [], [], PATIENCE_MS / 1000)[0]
        line = json.loads(told(broker))
        assert (line["event"], line["limit"]) == ("connections turned away", 20)


def test_it_listens_to_everybody_only_when_told(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTTTS_SECURITY__ALLOW_PLAIN", "true")
    with broker_process(*places(folder, f"tcp://0.0.0.0:{port}")) as broker, Sockets(OPTIONS) as sockets:
        assert "security.keys" in json.loads(told(broker))["event"]
        assert is_served(Peer(sockets, f"tcp://127.0.0.1:{port}"))
