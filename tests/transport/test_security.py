"""CURVE: who has no allowed key of the right role, or meets the wrong broker, gets no connection; the others go on."""

from __future__ import annotations

import os
import queue
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lighttts.errors import ConfigError
from lighttts.transport.keyfiles import KeyFolder, Role, new_pair
from lighttts.transport.security import Domain, Guard, Proof, Refusal
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Router, Sockets
from lighttts.transport.watch import Connection, connection_event
from tests.transport.keys import Keyring
from tests.transport.test_sockets import ANY_PORT, receive, send

PATIENCE_S = 10.0
IMPATIENT = SocketOptions(linger_ms=0, handshake_ms=300)


class Broker:
    """The three sockets of a broker, guarded."""

    def __init__(self, keys: Keyring) -> None:
        self.refusals: queue.SimpleQueue[Refusal] = queue.SimpleQueue()
        self.sockets = Sockets(SocketOptions(linger_ms=100, handshake_ms=5000), Guard(keys.broker, self.refusals.put))
        self.doors: dict[Domain, Router | Link] = {
            Domain.CLIENTS: self.sockets.router(ANY_PORT, Domain.CLIENTS),
            Domain.WORKERS: self.sockets.router(ANY_PORT, Domain.WORKERS),
            Domain.RESULTS: self.sockets.pull(ANY_PORT, Domain.RESULTS),
        }

    def endpoint(self, domain: Domain) -> str:
        return self.doors[domain].endpoint

    def admits(self, proof: Proof | None, domain: Domain) -> bool:
        """Whether a message of a new connection arrives; that it does not is told by a refusal."""
        with Sockets(IMPATIENT, proof) as others:
            link = (others.push if domain is Domain.RESULTS else others.dealer)(self.endpoint(domain))
            if not self.connected(link):
                return False
            send(link, b"hello")
            assert receive(self.doors[domain])[1] == [b"hello"]
            return True

    def connected(self, link: Link) -> bool:
        """Waits for a connection of `link`, or for the refusal of one."""
        while True:
            if link.socket.poll(20, zmq.POLLOUT):
                return True
            if not self.refusals.empty():
                return False

    def refusal(self) -> Refusal:
        return self.refusals.get(timeout=PATIENCE_S)

    def forget_refusals(self) -> None:
        while not self.refusals.empty():
            self.refusals.get()


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def broker(keys: Keyring) -> Iterator[Broker]:
    running = Broker(keys)
    yield running
    running.sockets.close()


def events(link: Link, count: int) -> list[Connection]:
    return [connection_event(receive(link)[1]) for _ in range(count)]


def await_mismatch(watch: Link) -> None:
    """Waits until this side has seen that the other wants another mechanism; at first the other may be quicker."""
    while (event := events(watch, 1)[0]) is not Connection.MISMATCHED:
        assert event in (Connection.REFUSED, Connection.LOST)


# ---- roles ----


@pytest.mark.parametrize("domain", Domain)
@pytest.mark.parametrize("role", [Role.CLIENT, Role.WORKER])
def test_a_key_opens_the_sockets_of_its_role_and_no_other(
    broker: Broker, keys: Keyring, role: Role, domain: Domain
) -> None:
    proof = keys.admitted(role, "somebody")
    assert broker.admits(proof, domain) == ((role is Role.CLIENT) == (domain is Domain.CLIENTS))


@pytest.mark.parametrize("domain", [Domain.WORKERS, Domain.RESULTS])
def test_a_client_s_key_at_a_worker_s_socket_is_told_from_an_unknown_one(
    broker: Broker, keys: Keyring, domain: Domain
) -> None:
    assert not broker.admits(keys.admitted(Role.CLIENT, "alice"), domain)
    refusal = broker.refusal()
    assert (refusal.domain, refusal.why, refusal.address) == (domain.value, "the key of a client", "127.0.0.1")


def test_a_client_s_key_called_a_worker_s_is_refused(broker: Broker, keys: Keyring) -> None:
    client = keys.admitted(Role.CLIENT, "alice")
    forged = keys.stranger(Role.WORKER, "mallory")
    forged.folder.store(Role.WORKER, "mallory", client.folder.pair(Role.CLIENT), replace=True)
    assert not broker.admits(forged, Domain.WORKERS)


@pytest.mark.parametrize("domain", Domain)
def test_an_unknown_key_is_refused_and_reported_by_its_fingerprint(
    broker: Broker, keys: Keyring, domain: Domain
) -> None:
    role = Role.CLIENT if domain is Domain.CLIENTS else Role.WORKER
    stranger = keys.stranger(role, "mallory")
    assert not broker.admits(stranger, domain)
    public = stranger.folder.pair(role).public.decode()
    assert broker.refusal() == Refusal(domain.value, "unknown key", "127.0.0.1", public[:8])


def test_the_broker_s_own_key_is_nobody_else_s(broker: Broker, keys: Keyring) -> None:
    thief = keys.stranger(Role.CLIENT, "mallory")
    thief.folder.store(Role.CLIENT, "mallory", keys.broker.pair(Role.BROKER), replace=True)
    assert not broker.admits(thief, Domain.CLIENTS)


# ---- who speaks otherwise ----


def test_a_plain_client_gets_nothing_in_while_others_go_on(broker: Broker, keys: Keyring) -> None:
    with Sockets(IMPATIENT) as plain:
        link, watch = plain.watched_dealer(broker.endpoint(Domain.CLIENTS))
        await_mismatch(watch)
        assert not link.socket.poll(0, zmq.POLLOUT)
        assert broker.admits(keys.admitted(Role.CLIENT, "alice"), Domain.CLIENTS)
    assert not broker.doors[Domain.CLIENTS].socket.poll(0, zmq.POLLIN)


def test_a_broker_with_another_key_is_not_spoken_to(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    alice.folder.store_broker_key(new_pair().public, replace=True)
    with Sockets(IMPATIENT, alice) as others:
        link, watch = others.watched_dealer(broker.endpoint(Domain.CLIENTS))
        assert events(watch, 4) == [Connection.REFUSED, Connection.LOST] * 2
        assert not link.socket.poll(0, zmq.POLLOUT)
    assert broker.refusals.empty()


def test_a_plain_broker_is_not_spoken_to_by_who_has_keys(keys: Keyring) -> None:
    with Sockets() as plain, Sockets(IMPATIENT, keys.admitted(Role.CLIENT, "alice")) as others:
        link, watch = others.watched_dealer(plain.router(ANY_PORT).endpoint)
        await_mismatch(watch)
        assert not link.socket.poll(0, zmq.POLLOUT)


def test_a_key_that_is_not_allowed_is_told_from_a_broker_that_is_not_there(broker: Broker, keys: Keyring) -> None:
    with Sockets(IMPATIENT, keys.stranger(Role.CLIENT, "mallory")) as others:
        _, watch = others.watched_dealer(broker.endpoint(Domain.CLIENTS))
        assert events(watch, 2) == [Connection.REFUSED, Connection.LOST]


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
GARBAGE = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "noise": bytes(range(256)) * 64,
    "greeting": GREETING,
    "greeting of an old version": GREETING.replace(b"\x7f\x03", b"\x7f\x01"),
    "greeting of an unknown mechanism": GREETING.replace(b"CURVE", b"BLANK"),
    "greeting and noise": GREETING + bytes(range(256)) * 64,
    "greeting and a huge frame": GREETING + b"\x06" + struct.pack(">Q", 2**62),
    "short hello": GREETING + b"\x04\x06\x05HELLO",
    "hello of zeros": GREETING + b"\x04\xc8\x05HELLO\x01" + bytes(193),
    "initiate without hello": GREETING + b"\x04\xff\x08INITIATE" + bytes(246),
}


@pytest.mark.parametrize("domain", Domain)
def test_garbage_instead_of_a_handshake_harms_nobody(broker: Broker, keys: Keyring, domain: Domain) -> None:
    host, _, port = broker.endpoint(domain).removeprefix("tcp://").partition(":")
    for garbage in GARBAGE.values():
        for ending in (socket.SHUT_WR, None):
            with socket.create_connection((host, int(port))) as raw:
                raw.settimeout(PATIENCE_S)
                try:
                    raw.sendall(garbage)
                    if ending is not None:
                        raw.shutdown(ending)
                        while raw.recv(4096):
                            pass
                except OSError:
                    # The broker has hung up, as it should.
                    continue
    assert broker.admits(keys.admitted(Role.CLIENT if domain is Domain.CLIENTS else Role.WORKER, "somebody"), domain)


def test_a_handshake_that_is_not_finished_in_time_is_ended(keys: Keyring) -> None:
    with Sockets(SocketOptions(handshake_ms=200), Guard(keys.broker, print)) as sockets:
        host, _, port = sockets.router(ANY_PORT, Domain.CLIENTS).endpoint.removeprefix("tcp://").partition(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.settimeout(PATIENCE_S)
            raw.sendall(GREETING)
            while raw.recv(4096):
                pass


# ---- rotation ----


@pytest.mark.parametrize("role", [Role.CLIENT, Role.WORKER])
def test_a_key_is_admitted_and_refused_from_the_moment_its_file_comes_and_goes(
    broker: Broker, keys: Keyring, role: Role
) -> None:
    domain = Domain.CLIENTS if role is Role.CLIENT else Domain.RESULTS
    assert broker.admits(keys.admitted(role, "first"), domain)
    second = keys.stranger(role, "second")
    assert not broker.admits(second, domain)
    keys.broker.allow(role, "second", second.folder.pair(role).public)
    broker.forget_refusals()
    assert broker.admits(second, domain)
    keys.broker.forbid(role, "second")
    assert not broker.admits(second, domain)


def test_a_replaced_key_is_refused_and_its_replacement_admitted(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    assert broker.admits(alice, Domain.CLIENTS)
    successor = keys.stranger(Role.CLIENT, "successor")
    keys.broker.allow(Role.CLIENT, "alice", successor.folder.pair(Role.CLIENT).public, replace=True)
    assert not broker.admits(alice, Domain.CLIENTS)
    broker.forget_refusals()
    assert broker.admits(successor, Domain.CLIENTS)


def test_who_was_refused_gets_in_as_soon_as_the_key_is_allowed(broker: Broker, keys: Keyring) -> None:
    late = keys.stranger(Role.WORKER, "late")
    with Sockets(IMPATIENT, late) as others:
        control = others.dealer(broker.endpoint(Domain.WORKERS))
        results = others.push(broker.endpoint(Domain.RESULTS))
        assert {broker.refusal().domain for _ in range(3)} == {"workers", "results"}
        keys.broker.allow(Role.WORKER, "late", late.folder.pair(Role.WORKER).public)
        for link, domain in ((control, Domain.WORKERS), (results, Domain.RESULTS)):
            send(link, b"at last")
            assert receive(broker.doors[domain])[1] == [b"at last"]


def test_a_file_changed_in_place_counts_within_a_second(broker: Broker, keys: Keyring) -> None:
    alice, successor = keys.admitted(Role.CLIENT, "alice"), keys.stranger(Role.CLIENT, "successor")
    assert broker.admits(alice, Domain.CLIENTS)
    key = successor.folder.pair(Role.CLIENT).public.decode()
    keys.broker.allowed_file(Role.CLIENT, "alice").write_text(f"lighttts-key 1 public client alice\n{key}\n")
    with Sockets(IMPATIENT, successor) as others:
        send(others.dealer(broker.endpoint(Domain.CLIENTS)), b"at last")
        assert receive(broker.doors[Domain.CLIENTS])[1] == [b"at last"]


def test_a_damaged_file_is_reported_and_costs_only_its_own_key(broker: Broker, keys: Keyring) -> None:
    alice, bob = keys.admitted(Role.CLIENT, "alice"), keys.admitted(Role.CLIENT, "bob")
    keys.broker.allowed_file(Role.CLIENT, "alice").write_text("oops")
    with Sockets(IMPATIENT, bob) as others:
        send(others.dealer(broker.endpoint(Domain.CLIENTS)), b"hello")
        assert receive(broker.doors[Domain.CLIENTS])[1] == [b"hello"]
    refusal = broker.refusal()
    assert (refusal.domain, refusal.address) == ("clients", "")
    assert "alice.key is not a public client key" in refusal.why
    broker.forget_refusals()
    assert not broker.admits(alice, Domain.CLIENTS)


def test_without_its_list_a_running_broker_admits_nobody(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    assert broker.admits(alice, Domain.CLIENTS)
    keys.broker.allowed_folder(Role.CLIENT).rename(keys.broker.path / "elsewhere")
    assert not broker.admits(alice, Domain.CLIENTS)
    assert "cannot be read" in broker.refusal().why


# ---- what is asked of the one who binds ----


def test_a_socket_whose_gatekeeper_has_gone_admits_nobody(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    gatekeeper = broker.sockets._gatekeeper
    assert gatekeeper
    gatekeeper.close()
    broker.sockets._gatekeeper = None
    with Sockets(IMPATIENT, alice) as others:
        link, watch = others.watched_dealer(broker.endpoint(Domain.CLIENTS))
        assert events(watch, 4) == [Connection.REFUSED, Connection.LOST] * 2
        assert not link.socket.poll(0, zmq.POLLOUT)


def test_nothing_is_bound_without_keys(tmp_path: Path) -> None:
    empty = KeyFolder(tmp_path)
    with Sockets(security=Guard(empty, print)) as sockets, pytest.raises(ConfigError, match="list of allowed keys"):
        sockets.router(ANY_PORT, Domain.CLIENTS)
    empty.make_lists()
    with Sockets(security=Guard(empty, print)) as sockets, pytest.raises(ConfigError, match="no secret broker key"):
        sockets.router(ANY_PORT, Domain.CLIENTS)


def test_a_guarded_socket_must_say_whom_it_is_for(keys: Keyring) -> None:
    with Sockets(security=Guard(keys.broker, print)) as sockets, pytest.raises(ValueError, match="domain"):
        sockets.router(ANY_PORT)


def test_nothing_is_connected_without_keys(tmp_path: Path, broker: Broker) -> None:
    with Sockets(security=Proof(KeyFolder(tmp_path / "none"), Role.WORKER)) as sockets:
        for connect in (sockets.dealer, sockets.push, sockets.watched_dealer):
            with pytest.raises(ConfigError, match=r"worker\.secret"):
                connect(broker.endpoint(Domain.WORKERS))


def test_ipc_needs_no_keys(tmp_path: Path) -> None:
    nothing = KeyFolder(tmp_path / "none")
    with (
        Sockets(security=Guard(nothing, print)) as sockets,
        Sockets(IMPATIENT, Proof(nothing, Role.CLIENT)) as others,
    ):
        router = sockets.router(f"ipc://{tmp_path}/e", Domain.CLIENTS)
        send(others.dealer(router.endpoint), b"hello")
        assert receive(router)[1] == [b"hello"]


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]"])
def test_a_network_s_address_is_not_bound_without_curve_unless_that_is_allowed(keys: Keyring, host: str) -> None:
    with Sockets() as sockets:
        for bind in (sockets.router, sockets.pull):
            with pytest.raises(ConfigError, match=r"other machines.*security\.keys.*security\.allow_plain"):
                bind(f"tcp://{host}:0")
    with Sockets(SocketOptions(allow_plain=True)) as sockets:
        sockets.router("tcp://0.0.0.0:0")
    with Sockets(security=Guard(keys.broker, print)) as sockets:
        sockets.router("tcp://0.0.0.0:0", Domain.CLIENTS)


def test_closing_amid_handshakes_ends(keys: Keyring) -> None:
    stranger = keys.stranger(Role.CLIENT, "mallory")
    with Sockets(IMPATIENT, stranger) as others:
        for _ in range(5):
            broker = Broker(keys)
            for _ in range(10):
                others.dealer(broker.endpoint(Domain.CLIENTS))
            broker.refusal()
            broker.sockets.close()


def test_descriptors_are_given_back(keys: Keyring) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> None:
        broker = Broker(keys)
        assert broker.admits(proof, Domain.CLIENTS)
        broker.sockets.close()

    proof = keys.admitted(Role.CLIENT, "alice")
    once()
    before = descriptors()
    once()
    assert descriptors() <= before
