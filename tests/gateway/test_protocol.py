"""Clients that are slow on purpose."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from lighttts.gateway import protocol
from lighttts.gateway.protocol import PatientProtocol

SOON_S = 0.2
PATIENCE_S = 20.0
HEAD = b"GET /short HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /short HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body, with more than anything buffers if the path is /long."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64 if scope["path"] == "/long" else 0):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    await send({"type": "http.response.body", "body": b"answer"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    for name in ("OWED_S", "STALL_S"):
        monkeypatch.setattr(protocol, name, SOON_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=PatientProtocol, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def connection(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, PATIENCE_S) as connected:
        yield connected


def rest(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    content = b""
    try:
        while piece := connection.recv(1 << 20):
            content += piece
    except ConnectionResetError:
        pass
    return content


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_head_that_does_not_end_is_not_waited_for(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert rest(connection) == b""


def test_a_head_that_comes_byte_by_byte_has_no_more_time(connection: socket.socket) -> None:
    connection.settimeout(SOON_S / 20)
    closed = False
    while not closed:
        try:
            connection.sendall(b"x")
            closed = connection.recv(1) == b""
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True


def test_a_second_request_has_its_own_time(connection: socket.socket) -> None:
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(4096)
        assert b"answer" in received
    connection.sendall(HEAD)
    assert rest(connection) == b""


def test_a_body_that_nobody_reads_is_not_waited_for(connection: socket.socket) -> None:
    connection.sendall(POST + b"x")
    assert b"answer" in rest(connection)


def test_a_client_that_does_not_read_is_left(connection: socket.socket) -> None:
    connection.sendall(HEAD.replace(b"short", b"long") + b"\r\n")
    connection.recv(1)
    threading.Event().wait(5 * SOON_S)
    # What is in the sockets' buffers can still be read, and is not all.
    assert not rest(connection).endswith(b"0\r\n\r\n")
