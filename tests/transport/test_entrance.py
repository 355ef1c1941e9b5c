"""A bound socket holds so many connections and no more; who has no key cannot keep out who has one."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from lighttts.transport.entrance import LEAST, RESERVE, SPEAK_S, Crowd, Entrance, room
from lighttts.transport.keyfiles import Role
from lighttts.transport.reactor import Reactor
from lighttts.transport.security import ADMITS, Domain
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Sockets
from tests.transport.keys import Keyring
from tests.transport.test_security import IMPATIENT, PATIENCE_S, Broker
from tests.transport.test_sockets import ANY_PORT, send

# ---- who goes, when there are too many ----


class Hall:
    """A crowd of at most three, and whom it has hung up."""

    def __init__(self, patience_s: float = 10.0, *, must_speak: bool = True) -> None:
        self.out: list[int] = []
        self.crowd = Crowd(3, patience_s, must_speak=must_speak, end=self.out.append)

    def enter(self, *descriptors: int, now: float = 0.0) -> None:
        for descriptor in descriptors:
            self.crowd.accepted(descriptor, now)


def test_the_one_that_has_been_silent_longest_makes_room() -> None:
    hall = Hall()
    hall.enter(1, 2, 3)
    hall.crowd.heard(1)
    hall.enter(4, 5)
    assert hall.out == [2, 3]
    assert (len(hall.crowd), hall.crowd.turned_away) == (3, 2)


def test_among_those_who_belong_here_the_newest_is_turned_away() -> None:
    hall = Hall()
    hall.enter(1, 2, 3)
    for descriptor in (1, 2, 3):
        hall.crowd.heard(descriptor)
    hall.enter(4)
    assert hall.out == [4]


def test_where_nobody_proves_anything_the_newest_is_turned_away() -> None:
    hall = Hall(0.0, must_speak=False)
    hall.enter(1, 2, 3, 4)
    hall.crowd.tick(1e9)
    assert hall.out == [4]


def test_who_leaves_makes_room() -> None:
    hall = Hall()
    hall.enter(1, 2, 3)
    hall.crowd.closed(2)
    hall.enter(4)
    hall.enter(4)
    assert (hall.out, len(hall.crowd)) == ([], 3)


def test_whoever_must_speak_and_does_not_is_hung_up_in_time() -> None:
    hall = Hall()
    hall.enter(1, 2)
    hall.enter(3, now=5.0)
    hall.crowd.heard(2)
    hall.crowd.tick(9.9)
    assert hall.out == []
    hall.crowd.tick(10.0)
    assert hall.out == [1]
    hall.crowd.tick(15.0)
    assert hall.out == [1, 3]
    assert len(hall.crowd) == 1


def test_whoever_may_be_silent_belongs_here_once_the_handshake_must_be_over() -> None:
    hall = Hall(must_speak=False)
    hall.enter(1, 2, 3)
    hall.crowd.tick(10.0)
    hall.enter(4, now=10.0)
    assert hall.out == [4]


def test_there_is_room_for_what_is_wanted_as_long_as_descriptors_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (RESERVE + 3000, 1 << 20))
    assert [room(3, wanted) for wanted in (500, 1000, 5000)] == [500, 1000, 1000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert room(3, 5000) == LEAST


# ---- real connections ----


class Guarded:
    """A guarded socket with an entrance, and the loop around it. Its clock can be set forward."""

    def __init__(self, keys: Keyring, domain: Domain, most: int) -> None:
        self.broker = Broker(keys)
        self.domain, self.door = domain, self.broker.doors[domain]
        self.ahead = 0.0
        self.entrance = Entrance(self.broker.sockets, self.door, domain, most, lambda: time.monotonic() + self.ahead)
        self.heard: list[bytes] = []
        self.reactor = Reactor()
        self.reactor.add(self.entrance.events, self.entrance.happened)
        self.reactor.add(self.door, lambda _, frames: self.heard.extend(frames))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.reactor.turn(0.02)

    def raw(self) -> socket.socket:
        """A connection of somebody who says nothing, once it is counted."""
        host, _, port = self.door.endpoint.removeprefix("tcp://").partition(":")
        seen = self.seen()
        connection = socket.create_connection((host, int(port)))
        connection.settimeout(PATIENCE_S)
        self.until(lambda: self.seen() > seen)
        return connection

    def seen(self) -> int:
        """Connections that have been accepted, as long as nobody leaves."""
        return len(self.entrance) + self.entrance._crowd.turned_away

    def speaks(self, sockets: Sockets, word: bytes) -> Link:
        """A connection with a key, whose word has arrived."""
        link = (sockets.push if self.domain is Domain.RESULTS else sockets.dealer)(self.door.endpoint)
        self.until(lambda: bool(link.socket.poll(0, zmq.POLLOUT)))
        send(link, word)
        self.until(lambda: word in self.heard)
        return link

    def close(self) -> None:
        self.reactor.close()
        self.broker.sockets.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[..., tuple[Keyring, Guarded]]]:
    with contextlib.ExitStack() as stack:

        def open_(domain: Domain, most: int) -> tuple[Keyring, Guarded]:
            keys = Keyring(tmp_path)
            guarded = Guarded(keys, domain, most)
            stack.callback(guarded.close)
            return keys, guarded

        yield open_


Open = Callable[..., tuple[Keyring, Guarded]]


def ended(connection: socket.socket) -> bool:
    """Whether the broker has hung up, after all that it had said before."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("domain", Domain)
def test_strangers_who_take_all_the_room_do_not_keep_out_who_has_a_key(guarded: Open, domain: Domain) -> None:
    keys, hall = guarded(domain, 8)
    role = ADMITS[domain]
    with Sockets(IMPATIENT, keys.admitted(role, "alice")) as hers, Sockets(IMPATIENT, keys.admitted(role, "b")) as his:
        link = hall.speaks(hers, b"first")
        strangers = [hall.raw() for _ in range(12)]
        assert len(hall.entrance) <= 8
        assert ended(strangers[0])
        hall.speaks(his, b"second")
        send(link, b"still here")
        hall.until(lambda: b"still here" in hall.heard)
        assert hall.entrance.tick() >= 5
        for stranger in strangers:
            stranger.close()
        hall.until(lambda: len(hall.entrance) == 2)


def test_one_key_does_not_get_all_the_room(guarded: Open) -> None:
    keys, hall = guarded(Domain.CLIENTS, 8)
    alice, bob = (keys.admitted(Role.CLIENT, name) for name in ("alice", "bob"))
    with Sockets(IMPATIENT, alice) as hers, Sockets(IMPATIENT, bob) as his:
        for word in (b"1", b"2"):
            hall.speaks(hers, word)
        third = hers.dealer(hall.door.endpoint)
        hall.until(lambda: bool(third.socket.poll(0, zmq.POLLOUT)))
        send(third, b"3")
        hall.until(lambda: hall.entrance.tick() > 0)
        hall.speaks(his, b"bob's")
        assert b"3" not in hall.heard


def test_a_connection_that_has_gone_counts_no_longer_for_its_key(guarded: Open) -> None:
    keys, hall = guarded(Domain.CLIENTS, 8)
    alice = keys.admitted(Role.CLIENT, "alice")
    with contextlib.ExitStack() as strangers:
        for round_ in range(3):
            with Sockets(IMPATIENT, alice) as hers:
                for number in range(2):
                    hall.speaks(hers, b"%d %d" % (round_, number))
            hall.until(lambda there=2 * round_: len(hall.entrance) == there)
            # They get the descriptors that have become free, so that nothing is learnt by using these again.
            for _ in range(2):
                strangers.enter_context(hall.raw())
        assert hall.entrance.tick() == 0


def test_a_key_alone_is_not_enough_to_stay_something_must_be_said(guarded: Open) -> None:
    keys, hall = guarded(Domain.CLIENTS, 8)
    alice = keys.admitted(Role.CLIENT, "alice")
    with Sockets(IMPATIENT, alice) as talks, Sockets(IMPATIENT, alice) as listens:
        link = hall.speaks(talks, b"hello")
        silent, _ = listens.watched_dealer(hall.door.endpoint)
        hall.until(lambda: bool(silent.socket.poll(0, zmq.POLLOUT)))
        hall.ahead = SPEAK_S
        assert hall.entrance.tick() == 1
        hall.until(lambda: not silent.socket.poll(0, zmq.POLLOUT))
        send(link, b"still here")
        hall.until(lambda: b"still here" in hall.heard)


def test_a_worker_s_results_connection_may_be_silent_for_long(guarded: Open) -> None:
    keys, hall = guarded(Domain.RESULTS, 8)
    with Sockets(IMPATIENT, keys.admitted(Role.WORKER, "gpu")) as sockets:
        link = sockets.push(hall.door.endpoint)
        hall.until(lambda: bool(link.socket.poll(0, zmq.POLLOUT)))
        hall.ahead = 3600.0
        assert hall.entrance.tick() == 0
        send(link, b"result")
        hall.until(lambda: b"result" in hall.heard)


def test_without_keys_whoever_was_there_first_stays() -> None:
    with Sockets(SocketOptions(linger_ms=0)) as sockets, Sockets(IMPATIENT) as others:
        router = sockets.router(ANY_PORT)
        gate = Entrance(sockets, router, Domain.CLIENTS, 2, time.monotonic)
        reactor, heard = Reactor(), []
        reactor.add(gate.events, gate.happened)
        reactor.add(router, lambda _, frames: heard.extend(frames))
        links = [others.dealer(router.endpoint) for _ in range(2)]
        for link in links:
            send(link, b"hello")
        while len(heard) < 2:
            reactor.turn(0.02)
        host, _, port = router.endpoint.removeprefix("tcp://").partition(":")
        with socket.create_connection((host, int(port))) as late:
            late.settimeout(PATIENCE_S)
            while gate.tick() == 0:
                reactor.turn(0.02)
            assert ended(late)
        for link in links:
            send(link, b"still here")
        while len(heard) < 4:
            reactor.turn(0.02)
        reactor.close()
