"""Watched sockets: what is told of their connection, and that one can be replaced while the others go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Sockets
from lighttts.transport.watch import Connection, connection_event
from tests.transport.test_sockets import ANY_PORT, receive, send


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with Sockets(SocketOptions(linger_ms=0)) as sockets:
        yield sockets


def event(events: Link) -> Connection:
    return connection_event(receive(events)[1])


def test_the_connection_of_a_push_is_told_like_that_of_a_dealer(sockets: Sockets) -> None:
    broker = Sockets(SocketOptions(linger_ms=0))
    push, events = sockets.watched_push(broker.pull(ANY_PORT).endpoint)
    assert event(events) is Connection.MADE
    broker.close()
    assert event(events) is Connection.LOST
    assert push.broadcast([b"nobody is there"]) == 0


def test_a_watched_socket_is_discarded_and_another_takes_its_place_under_its_identity(sockets: Sockets) -> None:
    router = sockets.router(ANY_PORT)
    for number in range(20):
        dealer, events = sockets.watched_dealer(router.endpoint, b"%d" % number)
        assert event(events) is Connection.MADE
        send(dealer, b"hello")
        assert receive(router) == (b"%d" % number, [b"hello"])
        sockets.discard(dealer, events)
        assert dealer.socket.closed
        assert events.socket.closed
    assert sockets._open == [router]
