"""A guarded router knows by which allowed key each of its peers came in."""

from __future__ import annotations

from pathlib import Path

from lighttts.transport.keyfiles import Role
from lighttts.transport.security import Domain, Guard
from lighttts.transport.transport import Link, Router, Sockets
from tests.transport.keys import Keyring
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


def test_without_keys_nobody_has_a_name() -> None:
    with Sockets() as sockets:
        router = sockets.router(ANY_PORT)
        assert router.user(greet(router, sockets.dealer(router.endpoint))) == ""
