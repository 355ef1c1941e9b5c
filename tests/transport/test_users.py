"""A guarded router knows by which allowed key each of its peers came in."""

from __future__ import annotations

from pathlib import Path

from lighttts.transport.keyfiles import Role
from lighttts.transport.security import Domain, Guard
from lighttts.transport.transport import Link, Router, Sockets
from tests.transport.keys import Keyring
from tests.transport.test_security import IMPATIENT
from tests.transport.test_sockets import ANY_PORT, receive, send


def greet(router: Router, link: Link) -> bytes:
    """Says something; returns the routing id it comes from."""
    send(link, b"hello", b"", b"more")
    peer, frames = receive(router)
    assert frames == [b"hello", b"", b"more"]
    return peer


def test_every_connection_of_a_key_has_its_name(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    anna, bob = (Sockets(None, keys.admitted(Role.CLIENT, name)) for name in ("anna", "bob"))
    with Sockets(security=Guard(keys.broker, print)) as own, anna, bob:
        router = own.router(ANY_PORT, Domain.CLIENTS)
        peers = [greet(router, sockets.dealer(router.endpoint)) for sockets in (anna, anna, bob)]
        assert len(set(peers)) == 3
        assert [router.user(peer) for peer in peers] == ["anna", "anna", "bob"]
        router.forget(peers[0])
        assert router.user(peers[0]) == ""


def test_who_comes_with_a_routing_id_that_another_had_is_who_the_key_says(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    anna, bob = (Sockets(IMPATIENT, keys.admitted(Role.CLIENT, name)) for name in ("anna", "bob"))
    with Sockets(security=Guard(keys.broker, print)) as own:
        router = own.router(ANY_PORT, Domain.CLIENTS)
        with anna:
            assert greet(router, anna.dealer(router.endpoint, b"me")) == b"me"
        # Nobody has been told yet that she has left: she may be gone, but what she asked for is hers.
        assert router.user(b"me") == "anna"
        with bob:
            heard: list[bytes] = []
            while not heard:
                # Until libzmq has seen her leave, it lets nobody have the routing id.
                link = bob.dealer(router.endpoint, b"me")
                send(link, b"hello")
                router.socket.poll(100)
                heard += [peer for peer, _ in router.receive(1)]
                link.close()
        assert heard == [b"me"]
        assert router.user(b"me") == "bob"


def test_without_keys_nobody_has_a_name() -> None:
    with Sockets() as sockets:
        router = sockets.router(ANY_PORT)
        assert router.user(greet(router, sockets.dealer(router.endpoint))) == ""
