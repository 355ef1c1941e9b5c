"""A removed key ends the connections that were made with it, within seconds; all others go on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import zmq

from lighttts.transport.guests import KEY_PROPERTY, Guest, Guests
from lighttts.transport.keyfiles import Role
from lighttts.transport.security import ADMITS, Domain, Proof
from lighttts.transport.transport import Link, Sockets
from lighttts.transport.watch import Connection
from tests.transport.keys import Keyring
from tests.transport.test_security import IMPATIENT, PATIENCE_S, Broker, events
from tests.transport.test_sockets import receive, send


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def broker(keys: Keyring) -> Iterator[Broker]:
    running = Broker(keys)
    yield running
    running.sockets.close()


def expelled(broker: Broker, domain: Domain) -> set[Guest]:
    """Waits until connections are ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if guests := broker.doors[domain].expel():
            return guests
        broker.doors[domain].socket.poll(20)
    raise AssertionError("no connection was ended")


def await_removal(broker: Broker, domain: Domain, proof: Proof) -> None:
    """Waits until the gatekeeper has seen that a key is not allowed any more."""
    public, deadline = proof.folder.pair(proof.role).public.decode(), time.monotonic() + PATIENCE_S
    assert broker.sockets._gatekeeper
    while public in broker.sockets._gatekeeper.standing(domain):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def attach(sockets: Sockets, broker: Broker, domain: Domain, word: bytes = b"hello") -> Link:
    """A new connection that has said something."""
    link = (sockets.push if domain is Domain.RESULTS else sockets.dealer)(broker.endpoint(domain))
    send(link, word, b"more")
    assert receive(broker.doors[domain])[1] == [word, b"more"]
    return link


@pytest.mark.parametrize("domain", Domain)
def test_a_removed_key_ends_its_connections_and_no_others(broker: Broker, keys: Keyring, domain: Domain) -> None:
    role = ADMITS[domain]
    alice, bob = keys.admitted(role, "alice"), keys.admitted(role, "bob")
    with Sockets(IMPATIENT, alice) as hers, Sockets(IMPATIENT, bob) as his:
        links = [attach(hers, broker, domain) for _ in range(2)]
        other = attach(his, broker, domain)
        assert broker.doors[domain].expel() == set()
        keys.broker.forbid(role, "alice")
        assert [guest.user for guest in expelled(broker, domain)] == ["alice"] * len(links)
        # Each connects again, which shows that its connection has ended, and is not let in.
        assert {broker.refusal().why for _ in range(4)} == {"unknown key"}
        send(other, b"still here")
        assert receive(broker.doors[domain])[1] == [b"still here"]
        assert broker.doors[domain].expel() == set()


def test_whoever_is_expelled_learns_that_the_connection_has_ended_and_is_refused(broker: Broker, keys: Keyring) -> None:
    with Sockets(IMPATIENT, keys.admitted(Role.CLIENT, "alice")) as hers:
        link, watch = hers.watched_dealer(broker.endpoint(Domain.CLIENTS))
        send(link, b"hello")
        receive(broker.doors[Domain.CLIENTS])
        keys.broker.forbid(Role.CLIENT, "alice")
        expelled(broker, Domain.CLIENTS)
        assert events(watch, 3) == [Connection.MADE, Connection.LOST, Connection.REFUSED]


@pytest.mark.parametrize("domain", Domain)
def test_a_message_of_a_removed_key_does_not_arrive(broker: Broker, keys: Keyring, domain: Domain) -> None:
    role, door = ADMITS[domain], broker.doors[domain]
    alice, bob = keys.admitted(role, "alice"), keys.admitted(role, "bob")
    with Sockets(IMPATIENT, alice) as hers, Sockets(IMPATIENT, bob) as his:
        link, other = (sockets.push if domain is Domain.RESULTS else sockets.dealer for sockets in (hers, his))
        silent, talker = link(broker.endpoint(domain)), other(broker.endpoint(domain))
        for each in (silent, talker):
            assert each.socket.poll(PATIENCE_S * 1000, zmq.POLLOUT)
        keys.broker.forbid(role, "alice")
        await_removal(broker, domain, alice)
        send(silent, b"a word", b"too late")
        (guest,) = expelled_by_speaking(broker, domain)
        assert guest.user == "alice"
        send(talker, b"mine")
        assert receive(door)[1] == [b"mine"]


def expelled_by_speaking(broker: Broker, domain: Domain) -> set[Guest]:
    """Who is expelled for having said something, none of which may arrive."""
    door, deadline = broker.doors[domain], time.monotonic() + PATIENCE_S
    while not (guests := door.expel()):
        assert time.monotonic() < deadline
        assert list(door.receive(10)) == []
        door.socket.poll(20)
    return guests


def test_a_replaced_key_ends_the_connections_of_the_old_one_though_the_name_stays(
    broker: Broker, keys: Keyring
) -> None:
    alice, successor = keys.admitted(Role.CLIENT, "alice"), keys.stranger(Role.CLIENT, "successor")
    with Sockets(IMPATIENT, alice) as old, Sockets(IMPATIENT, successor) as new:
        attach(old, broker, Domain.CLIENTS)
        public = successor.folder.pair(Role.CLIENT).public
        keys.broker.allow(Role.CLIENT, "alice", public, replace=True)
        (guest,) = expelled(broker, Domain.CLIENTS)
        assert guest.key == alice.folder.pair(Role.CLIENT).public.decode()
        broker.forget_refusals()
        attach(new, broker, Domain.CLIENTS)


def test_who_is_allowed_again_gets_in_again(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    with Sockets(IMPATIENT, alice) as hers:
        link = attach(hers, broker, Domain.CLIENTS)
        keys.broker.forbid(Role.CLIENT, "alice")
        expelled(broker, Domain.CLIENTS)
        broker.refusal()
        keys.broker.allow(Role.CLIENT, "alice", alice.folder.pair(Role.CLIENT).public)
        send(link, b"again")
        assert receive(broker.doors[Domain.CLIENTS])[1] == [b"again"]
        assert broker.doors[Domain.CLIENTS].expel() == set()


def test_a_second_name_for_a_key_keeps_its_connections(broker: Broker, keys: Keyring) -> None:
    alice = keys.admitted(Role.CLIENT, "alice")
    keys.broker.allow(Role.CLIENT, "second", alice.folder.pair(Role.CLIENT).public)
    bob = keys.admitted(Role.CLIENT, "bob")
    with Sockets(IMPATIENT, alice) as hers, Sockets(IMPATIENT, bob) as his:
        link = attach(hers, broker, Domain.CLIENTS)
        attach(his, broker, Domain.CLIENTS)
        for name in ("alice", "bob"):
            keys.broker.forbid(Role.CLIENT, name)
        assert {guest.user for guest in expelled(broker, Domain.CLIENTS)} == {"bob"}
        send(link, b"still here")
        assert receive(broker.doors[Domain.CLIENTS])[1] == [b"still here"]


@pytest.mark.parametrize("whole_list", [False, True])
def test_a_key_that_cannot_be_read_is_not_a_removed_one(broker: Broker, keys: Keyring, whole_list: bool) -> None:
    with Sockets(IMPATIENT, keys.admitted(Role.CLIENT, "alice")) as hers:
        link = attach(hers, broker, Domain.CLIENTS)
        if whole_list:
            keys.broker.allowed_folder(Role.CLIENT).rename(keys.broker.path / "elsewhere")
        else:
            keys.broker.allowed_file(Role.CLIENT, "alice").write_text("oops")
        refusal = broker.refusal()
        assert (refusal.domain, refusal.address) == ("clients", "")
        assert broker.doors[Domain.CLIENTS].expel() == set()
        send(link, b"still here")
        assert receive(broker.doors[Domain.CLIENTS])[1] == [b"still here"]


# ---- descriptors are used again ----


class Frame:
    """What a message tells of its connection."""

    def __init__(self, descriptor: int, key: str = "k", user: str = "alice") -> None:
        self._told = {KEY_PROPERTY: key, "User-Id": user, zmq.SRCFD: descriptor}

    def get(self, what: object) -> object:
        return self._told[what]  # type: ignore[index]


def connection(port: int = 0) -> tuple[socket.socket, socket.socket, int]:
    """Both ends of a tcp connection, and the port it was made to: any or that one."""
    with socket.create_server(("127.0.0.1", port)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
        far.settimeout(PATIENCE_S)
        return near, far, server.getsockname()[1]


def alive(near: socket.socket, far: socket.socket) -> bool:
    try:
        near.sendall(b"x")
    except BrokenPipeError:
        return False
    return far.recv(1) == b"x"


def guest_by(descriptor: int, port: int) -> tuple[Guests, list[frozenset[str]]]:
    """A guest whose key stands as long as the list's entry names it."""
    standing = [frozenset({"k"})]
    guests = Guests(port, lambda: standing[0])
    assert guests.welcome(cast(zmq.Frame, Frame(descriptor)), b"peer")
    return guests, standing


def test_a_connection_is_ended_by_its_descriptor() -> None:
    near, far, port = connection()
    guests, standing = guest_by(near.fileno(), port)
    with near, far:
        assert alive(near, far)
        standing[0] = frozenset()
        assert [guest.peer for guest in guests.expel()] == [b"peer"]
        assert not alive(near, far)


def test_a_later_connection_with_the_same_descriptor_is_left_alone() -> None:
    near, far, port = connection()
    guests, standing = guest_by(near.fileno(), port)
    number = near.fileno()
    near.close()
    far.close()
    near, far, _ = connection(port)
    later = socket.socket(fileno=_moved(near, number))
    with later, far:
        standing[0] = frozenset()
        assert len(guests.expel()) == 1
        assert alive(later, far)


def _moved(near: socket.socket, number: int) -> int:
    """The descriptor of `near`, which is now `number`."""
    if near.fileno() == number:
        return near.detach()
    os.dup2(near.fileno(), number, inheritable=False)
    near.close()
    return number


def test_a_message_by_a_descriptor_that_is_used_again_is_its_new_owner_s() -> None:
    near, far, port = connection()
    guests, standing = guest_by(near.fileno(), port)
    standing[0] = frozenset({"k", "l"})
    with near, far:
        theirs = cast(zmq.Frame, Frame(near.fileno(), "l", "bob"))
        assert [
            guest and guest.user for guest in (guests.welcome(theirs, b"peer"), guests.welcome(theirs, b"other"))
        ] == [
            "bob",
            "bob",
        ]
        standing[0] = frozenset({"l"})
        assert guests.expel() == set()
        assert alive(near, far)


def test_a_connection_of_another_port_is_never_touched() -> None:
    near, far, port = connection()
    guests, standing = guest_by(near.fileno(), port + 1)
    with near, far:
        standing[0] = frozenset()
        guests.expel()
        assert alive(near, far)


def test_what_is_not_a_socket_any_more_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        guests, standing = guest_by(file.fileno(), 1)
        standing[0] = frozenset()
        assert len(guests.expel()) == 1
        file.write(b"unharmed")
