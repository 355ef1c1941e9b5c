"""More connections than descriptors: the broker goes on, and takes new ones when the others have left."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.transport import wire
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.peers import Peer
from tests.pitfalls.rig import broker_process, told

DESCRIPTORS = 320
TOO_FEW = 56
CROWD = 400


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with Sockets(SocketOptions(linger_ms=0)) as sockets:
        yield sockets


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        yield Path(short)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def is_served(client: Peer) -> bool:
    client.say(wire.GetStatus(1))
    return client.hear(wire.Status).query_id == 1


def come_in_numbers(port: int, stack: contextlib.ExitStack) -> None:
    """Many connections, each open until the broker hangs up or the stack is closed."""
    for _ in range(CROWD):
        connection = stack.enter_context(socket.socket())
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))


def test_a_crowd_takes_no_descriptor_that_the_broker_needs(sockets: Sockets, folder: Path) -> None:
    port, workers = free_port(), f"ipc://{folder}/workers"
    settings = [f"clients=tcp://127.0.0.1:{port}", f"workers={workers}", f"results=ipc://{folder}/results"]
    with broker_process(*settings, limit=f"ulimit -n {DESCRIPTORS}") as broker:
        assert json.loads(told(broker))["event"].startswith("few files may be open")
        client = Peer(sockets, f"tcp://127.0.0.1:{port}")
        assert is_served(client)
        with contextlib.ExitStack() as crowd:
            come_in_numbers(port, crowd)
            assert json.loads(told(broker))["event"] == "connections turned away"
            assert is_served(client)
            # libzmq would end the process here, were no descriptor left for this connection.
            worker = Peer(sockets, workers)
            worker.say(wire.Register("w", 1, "llm", "", "", 24000, ()))
            worker.hear(wire.Registered)
        assert is_served(Peer(sockets, f"tcp://127.0.0.1:{port}"))
        assert broker.poll() is None


def test_a_broker_without_a_descriptor_left_serves_whom_it_has_and_recovers(sockets: Sockets) -> None:
    ports = [free_port() for _ in range(3)]
    settings = [
        f"{name}=tcp://127.0.0.1:{port}" for name, port in zip(("clients", "workers", "results"), ports, strict=True)
    ]
    with broker_process(*settings, limit=f"ulimit -n {TOO_FEW}") as broker:
        client = Peer(sockets, f"tcp://127.0.0.1:{ports[0]}")
        assert is_served(client)
        with contextlib.ExitStack() as crowd:
            for port in ports:
                come_in_numbers(port, crowd)
            until = uptime(client) + 2.5
            while uptime(client) < until:
                assert broker.poll() is None
        assert is_served(Peer(sockets, f"tcp://127.0.0.1:{ports[0]}"))
        assert broker.poll() is None


def uptime(client: Peer) -> float:
    client.say(wire.GetStatus(1))
    return client.hear(wire.Status).uptime_s
