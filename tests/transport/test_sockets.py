"""Sockets: nothing is lost in silence, an address belongs to one process, and everything ends in bounded time."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lighttts.errors import ConfigError, ProtocolError
from lighttts.transport.endpoints import connectable, is_loopback, listening, tcp_address
from lighttts.transport.sockets import IPC_PATH_MAX, IpcLock, SocketOptions, make_socket
from lighttts.transport.transport import NO_TARGET, Delivery, Link, Router, Sockets
from lighttts.transport.watch import Connection, connection_event
from lighttts.transport.wire import MAX_FRAME_BYTES, OLDEST, VERSION, EncodeWork, Hello, Welcome, encode, version_of

DEADLINE_MS = 10_000
ANY_PORT = "tcp://127.0.0.1:0"


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with Sockets(SocketOptions(high_water_mark=50, linger_ms=100)) as sockets:
        yield sockets


def receive(transport: Router | Link) -> tuple[bytes, list[bytes]]:
    """The next message, waiting for it."""
    assert transport.socket.poll(DEADLINE_MS, zmq.POLLIN), "no message came"
    return next(iter(transport.receive(1)))


def send(transport: Link, *frames: bytes) -> None:
    """Sends as soon as there is a connection."""
    assert transport.socket.poll(DEADLINE_MS, zmq.POLLOUT), "no connection came"
    assert transport.send(NO_TARGET, frames) is Delivery.SENT


def greet(router: Router, dealer: Link) -> bytes:
    """Makes the router know the dealer; returns its routing id."""
    send(dealer, b"hello")
    peer, frames = receive(router)
    assert frames == [b"hello"]
    return peer


# ---- options ----


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER, zmq.PUSH, zmq.PULL])
def test_every_socket_has_bounded_linger_high_water_mark_message_size_and_heartbeats(kind: int) -> None:
    options = SocketOptions(
        high_water_mark=7, linger_ms=250, heartbeat_ms=500, heartbeat_timeout_ms=1500, handshake_ms=700
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        made = make_socket(context, kind, options)
        assert (made.linger, made.sndhwm, made.rcvhwm) == (250, 7, 7)
        assert made.getsockopt(zmq.MAXMSGSIZE) == MAX_FRAME_BYTES
        assert made.getsockopt(zmq.HEARTBEAT_IVL) == 500
        assert made.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 1500
        assert made.getsockopt(zmq.HEARTBEAT_TTL) == 1500
        assert made.getsockopt(zmq.HANDSHAKE_IVL) == made.getsockopt(zmq.CONNECT_TIMEOUT) == 700
        made.close()
    finally:
        context.term()


def test_the_defaults_bound_everything() -> None:
    options = SocketOptions()
    assert 0 < options.linger_ms <= 5000
    assert 0 < options.high_water_mark <= 10_000
    assert options.ipc_mode == 0o600


# ---- ROUTER ----


def test_a_message_to_nobody_is_gone_not_lost(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    assert router.send(b"nobody", [b"x"]) is Delivery.GONE


def test_a_peer_that_does_not_read_is_full_and_loses_nothing_and_delays_nobody(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    slow, quick = sockets.dealer(router.endpoint, b"slow"), sockets.dealer(router.endpoint, b"quick")
    slow_id, quick_id = greet(router, slow), greet(router, quick)
    payload = bytes(10_000)
    sent = 0
    while router.send(slow_id, [sent.to_bytes(4, "big"), payload]) is Delivery.SENT:
        sent += 1
        assert sent < 100_000
    assert router.send(slow_id, [b"x"]) is Delivery.FULL
    assert router.send(quick_id, [b"meanwhile"]) is Delivery.SENT
    assert receive(quick) == (NO_TARGET, [b"meanwhile"])
    for number in range(sent):
        assert receive(slow)[1][0] == number.to_bytes(4, "big")
    assert slow.socket.poll(0, zmq.POLLIN) == 0


def test_a_peer_that_has_left_is_gone(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    with Sockets(SocketOptions(linger_ms=0)) as others:
        dealer = others.dealer(router.endpoint)
        peer = greet(router, dealer)
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while router.send(peer, [b"x"]) is not Delivery.GONE:
        assert time.monotonic() < deadline
        router.socket.poll(10)
    assert peer not in router.peers


def test_broadcast_reaches_every_peer_and_tells_how_many(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    assert router.broadcast([b"x"]) == 0
    dealers = [sockets.dealer(router.endpoint, bytes([65 + number])) for number in range(3)]
    peers = [greet(router, dealer) for dealer in dealers]
    assert router.broadcast([b"to all", b"2"]) == 3
    assert [receive(dealer)[1] for dealer in dealers] == [[b"to all", b"2"]] * 3
    router.forget(peers[0])
    assert router.broadcast([b"to two"]) == 2
    assert [receive(dealer)[1] for dealer in dealers[1:]] == [[b"to two"]] * 2


def test_broadcast_does_not_count_who_is_gone(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    router.peers.add(b"gone before it was noticed")
    greet(router, sockets.dealer(router.endpoint))
    assert router.broadcast([b"x"]) == 1
    assert b"gone before it was noticed" not in router.peers


def test_receiving_stops_at_its_budget_and_at_the_end(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    dealer = sockets.dealer(router.endpoint)
    for number in range(5):
        send(dealer, bytes([number]))
    got: list[bytes] = []
    while len(got) < 5:
        assert router.socket.poll(DEADLINE_MS, zmq.POLLIN)
        batch = [frames[0] for _, frames in router.receive(2)]
        assert len(batch) <= 2
        got += batch
    assert got == [bytes([number]) for number in range(5)]
    assert list(router.receive(2)) == []


def test_a_router_answers_each_peer_in_the_version_it_speaks(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    old, new = sockets.dealer(router.endpoint, b"old"), sockets.dealer(router.endpoint, b"new")
    send(old, *map(bytes, encode(Hello("c", "s"), OLDEST)))
    send(new, *map(bytes, encode(Hello("c", "s"))))
    for _ in range(2):
        receive(router)
    welcome = Welcome("b", "s", 1, 1, ready=False)
    for peer in (b"old", b"new"):
        assert router.send(peer, encode(welcome)) is Delivery.SENT
    assert receive(old)[1] == encode(welcome, OLDEST)
    assert receive(new)[1] == encode(welcome)


def test_a_peer_that_was_upgraded_is_answered_in_its_new_version(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    dealer = sockets.dealer(router.endpoint, b"peer")
    for version in (OLDEST, VERSION):
        send(dealer, *map(bytes, encode(Hello("c", "s"), version)))
        receive(router)
        router.send(b"peer", encode(Welcome("b", "s", 1, 1)))
        assert version_of(receive(dealer)[1]) == version


def test_a_peer_that_cannot_be_told_something_in_its_version_counts_as_gone(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    send(sockets.dealer(router.endpoint, b"old"), *map(bytes, encode(Hello("c", "s"), OLDEST)))
    receive(router)
    assert router.send(b"old", encode(EncodeWork("r", 0, "Hi.", "v", "", b"", "in a whisper"))) is Delivery.GONE
    assert router.peers == set()


# ---- links ----


def test_a_link_without_a_connection_is_full_rather_than_queueing_to_nobody(sockets: Sockets) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert sockets.dealer(f"tcp://127.0.0.1:{port}").send(NO_TARGET, [b"x"]) is Delivery.FULL
    push = sockets.push(f"tcp://127.0.0.1:{port}")
    assert push.send(NO_TARGET, [b"x"]) is Delivery.FULL
    assert push.broadcast([b"x"]) == 0


def test_push_and_pull_carry_frames_as_they_are(sockets: Sockets) -> None:
    pull = sockets.pull(ANY_PORT)
    push = sockets.push(pull.endpoint)
    large = memoryview(os.urandom(300_000))
    assert push.socket.poll(DEADLINE_MS, zmq.POLLOUT)
    assert push.broadcast([b"head", b"", large]) == 1
    assert receive(pull) == (NO_TARGET, [b"head", b"", bytes(large)])


def test_a_link_has_one_peer(sockets: Sockets) -> None:
    with pytest.raises(ValueError, match="one peer"):
        sockets.dealer("ipc:///tmp/x").send(b"someone", [b"x"])


def test_a_frame_above_the_size_limit_ends_its_sender_only(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    with Sockets(SocketOptions(linger_ms=0)) as others:
        dealer, events = others.watched_dealer(router.endpoint)
        assert connection_event(receive(events)[1]) is Connection.MADE
        send(dealer, bytes(MAX_FRAME_BYTES + 1))
        assert connection_event(receive(events)[1]) is Connection.LOST
    good = sockets.dealer(router.endpoint)
    assert greet(router, good)


# ---- watching a connection ----


def test_a_watched_dealer_tells_when_its_peer_comes_and_goes(tmp_path: Path, sockets: Sockets) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    dealer, events = sockets.watched_dealer(endpoint)
    for _ in range(2):
        with Sockets() as others:
            router = others.router(endpoint)
            assert connection_event(receive(events)[1]) is Connection.MADE
            greet(router, dealer)
        assert connection_event(receive(events)[1]) is Connection.LOST


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ProtocolError):
        connection_event([b"x"])


# ---- addresses ----


def test_a_wildcard_port_is_resolved(sockets: Sockets) -> None:
    endpoint = sockets.router(ANY_PORT).endpoint
    host, port = tcp_address(endpoint)
    assert host == "127.0.0.1"
    assert port > 0


def test_a_port_in_use_is_a_config_error_that_says_so(sockets: Sockets) -> None:
    endpoint = sockets.router(ANY_PORT).endpoint
    with pytest.raises(ConfigError, match="in use"):
        sockets.router(endpoint)
    assert sockets.pull(ANY_PORT).endpoint != endpoint


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://", "http://host:1", "tcp://no-such-host.invalid:1"])
def test_what_is_no_address_cannot_be_bound(sockets: Sockets, endpoint: str) -> None:
    with pytest.raises(ConfigError):
        sockets.router(endpoint)


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://", "http://host:1", "tcp://host", "ipc://"])
def test_what_is_no_address_cannot_be_connected_to(sockets: Sockets, endpoint: str) -> None:
    for connect in (sockets.dealer, sockets.push, sockets.watched_dealer):
        with pytest.raises(ConfigError):
            connect(endpoint)


def test_listening_knows_who_is_there(tmp_path: Path, sockets: Sockets) -> None:
    for endpoint in (f"ipc://{tmp_path}/e", ANY_PORT):
        with Sockets() as others:
            bound = others.router(endpoint).endpoint
            assert listening(bound)
        assert not listening(bound)
    with pytest.raises(ConfigError):
        listening("localhost")


@pytest.mark.parametrize(
    ("endpoint", "alone"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.1.2.3:*", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.1.2.3:1", False),
        ("tcp://eth0:1", False),
        ("tcp://localhost.example.org:1", False),
    ],
)
def test_an_address_of_this_machine_alone_is_told_from_a_network_s(endpoint: str, alone: bool) -> None:
    assert is_loopback(endpoint) == alone


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        ("tcp://*:5570", "tcp://127.0.0.1:5570"),
        ("tcp://0.0.0.0:5570", "tcp://127.0.0.1:5570"),
        ("tcp://[::]:5570", "tcp://[::1]:5570"),
        ("tcp://10.1.2.3:5570", "tcp://10.1.2.3:5570"),
        ("ipc:///run/b", "ipc:///run/b"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_wildcard_address_is_reached_on_this_machine(bound: str, reached: str) -> None:
    assert connectable(bound) == reached


# ---- ipc ----


def test_a_second_bind_of_an_ipc_path_fails_and_does_not_steal(tmp_path: Path, sockets: Sockets) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    router = sockets.router(endpoint)
    with Sockets() as others, pytest.raises(ConfigError, match="in use by another process"):
        others.router(endpoint)
    greet(router, sockets.dealer(endpoint))


def test_the_lock_holds_between_processes_and_dies_with_its_holder(tmp_path: Path, sockets: Sockets) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    program = (
        "import sys, time; from lighttts.transport.transport import Sockets\n"
        "sockets = Sockets(); sockets.router(sys.argv[1]); print('bound', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, endpoint], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"bound\n"
        with pytest.raises(ConfigError, match="in use by another process"):
            sockets.router(endpoint)
        holder.send_signal(signal.SIGKILL)
    # The killed process has left its socket and lock files: they are in nobody's way.
    assert (tmp_path / "e").exists()
    greet(sockets.router(endpoint), sockets.dealer(endpoint))


def test_an_ipc_path_is_free_again_after_closing_and_nothing_is_left(tmp_path: Path) -> None:
    for _ in range(20):
        with Sockets() as sockets:
            router = sockets.router(f"ipc://{tmp_path}/e")
            greet(router, sockets.dealer(router.endpoint))
        assert os.listdir(tmp_path) == []


def test_a_lock_file_removed_under_the_lock_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e"
    opened = IpcLock._open
    raced = []

    def open_then_lose(lock: IpcLock) -> int:
        descriptor = opened(lock)
        if not raced:
            # As when another process releases the lock between our opening its file and locking it.
            raced.append(True)
            lock._lock_path.unlink()
        return descriptor

    monkeypatch.setattr(IpcLock, "_open", open_then_lose)
    lock = IpcLock(path)
    with pytest.raises(ConfigError):
        IpcLock(path)
    lock.release()


def test_only_the_owner_may_use_an_ipc_endpoint_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Sockets() as sockets:
            sockets.router(f"ipc://{tmp_path}/e")
            for name in ("e", "e.lock"):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        with Sockets(SocketOptions(ipc_mode=0o660)) as sockets:
            sockets.router(f"ipc://{tmp_path}/e")
            assert stat.S_IMODE((tmp_path / "e").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_an_ipc_socket_never_had_wider_permissions_than_it_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a change of the file's mode after it was made, the mode is that with which it was made.
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    before = os.umask(0)
    try:
        with Sockets(SocketOptions(ipc_mode=0o660)) as sockets:
            sockets.router(f"ipc://{tmp_path}/e")
            assert stat.S_IMODE((tmp_path / "e").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path, sockets: Sockets) -> None:
    (tmp_path / "e.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot use ipc path"):
        sockets.router(f"ipc://{tmp_path}/e")
    assert not (tmp_path / "elsewhere").exists()


def test_an_ipc_endpoint_without_a_file_is_refused(sockets: Sockets) -> None:
    for use in (sockets.router, sockets.dealer):
        with pytest.raises(ConfigError, match="no permissions"):
            use("ipc://@lighttts")


def test_an_ipc_path_longer_than_the_kernel_takes_is_refused_by_its_length(tmp_path: Path, sockets: Sockets) -> None:
    longest = f"{tmp_path}/".ljust(IPC_PATH_MAX, "x")
    sockets.router(f"ipc://{longest}")
    for use in (sockets.router, sockets.dealer):
        with pytest.raises(ConfigError, match="107 bytes"):
            use(f"ipc://{longest}x")


def test_an_ipc_path_in_no_folder_is_a_config_error(tmp_path: Path, sockets: Sockets) -> None:
    with pytest.raises(ConfigError, match="folder that exists"):
        sockets.router(f"ipc://{tmp_path}/no/e")


# ---- ending ----


def test_closing_with_unsent_messages_and_a_dead_peer_is_bounded() -> None:
    with Sockets(SocketOptions(linger_ms=50)) as sockets:
        router = sockets.router(ANY_PORT)
        dealer = sockets.dealer(router.endpoint)
        peer = greet(router, dealer)
        for _ in range(20):
            router.send(peer, [bytes(100_000)])
    began = time.monotonic()
    sockets.close()
    assert time.monotonic() - began < 5


def test_the_last_message_leaves_within_the_linger_time() -> None:
    with Sockets() as sockets:
        pull = sockets.pull(ANY_PORT)
        with Sockets() as others:
            push = others.push(pull.endpoint)
            send(push, b"the last word")
        assert receive(pull) == (NO_TARGET, [b"the last word"])
