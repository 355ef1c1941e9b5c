"""Pitfalls of single sockets: addresses, connections, queues, and waking up."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lighttts.errors import ConfigError
from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.reactor import Reactor
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import NO_TARGET, Delivery, Link, Sockets
from lighttts.transport.watch import Connection, connection_event
from tests.broker.peers import ANY, PATIENCE_MS, Peer, RunningApp
from tests.pitfalls.rig import PATIENCE, broker_process, connected, process, receive, tell, told
from tests.transport.keys import Keyring


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


def test_01_a_message_to_an_unknown_peer_is_not_silently_dropped(sockets: Sockets) -> None:
    router = sockets.router(ANY)
    assert router.send(b"nobody", [b"x"]) is Delivery.GONE
    dealer = connected(sockets.dealer(router.endpoint))
    dealer.send(NO_TARGET, [b"hello"])
    peer, _ = receive(router)
    assert router.send(peer, [b"x"]) is Delivery.SENT
    assert receive(dealer)[1] == [b"x"]


CONNECTED_BUT_DEAF = """
import signal, sys
from lighttts.transport.transport import NO_TARGET, Sockets
link = Sockets().dealer(sys.argv[1])
link.socket.poll(-1, 2)
link.send(NO_TARGET, [b"hello"])
signal.pause()
"""
CLOSES_WITH_MESSAGES_FOR_THE_DEAF = """
import sys
from lighttts.transport.transport import Sockets
with Sockets() as sockets:
    router = sockets.router("tcp://127.0.0.1:0")
    print(router.endpoint, file=sys.stderr, flush=True)
    router.socket.poll()
    [(peer, _)] = router.receive(1)
    print("met", file=sys.stderr, flush=True)
    sys.stdin.readline()
    for _ in range(40):
        router.send(peer, [bytes(1 << 20)])
"""


def test_06_closing_loses_no_dying_message_and_does_not_wait_for_a_dead_peer_for_ever() -> None:
    last_words = [number.to_bytes(2, "big") + bytes(1 << 18) for number in range(100)]
    with Sockets() as alive:
        pull = alive.pull(ANY)
        with Sockets(SocketOptions(linger_ms=30_000)) as dying:
            push = connected(dying.push(pull.endpoint))
            assert all(push.send(NO_TARGET, [word]) is Delivery.SENT for word in last_words)
        assert [receive(pull)[1] for _ in last_words] == [[word] for word in last_words]
    with (
        process("-c", CLOSES_WITH_MESSAGES_FOR_THE_DEAF) as closing,
        process("-c", CONNECTED_BUT_DEAF, told(closing)) as deaf,
    ):
        assert told(closing) == "met"
        deaf.send_signal(signal.SIGSTOP)
        tell(closing)
        assert closing.wait(PATIENCE) == 0


def test_08_a_second_bind_of_an_ipc_path_fails_clearly_and_steals_nothing(tmp_path: Path, sockets: Sockets) -> None:
    endpoints = {name: f"ipc://{tmp_path}/{name}" for name in ("clients", "workers", "results")}
    with broker_process(*(f"{name}={endpoint}" for name, endpoint in endpoints.items())) as first:
        for name, endpoint in endpoints.items():
            with Sockets() as others, pytest.raises(ConfigError, match="in use by another process"):
                (others.pull if name == "results" else others.router)(endpoint)
        client = Peer(sockets, endpoints["clients"])
        client.say(wire.Hello("me", "test"))
        assert client.hear(wire.Welcome).broker.endswith(f"-{first.pid}")


BINDS = """
import signal, sys
from lighttts.transport.transport import Sockets
router = Sockets().router(sys.argv[1])
print("bound", file=sys.stderr, flush=True)
signal.pause()
"""


def test_09_an_ipc_path_has_its_own_permissions_survives_its_holder_and_has_a_length_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with process("-c", BINDS, f"ipc://{path}") as holder:
        assert told(holder) == "bound"
        holder.kill()
    assert path.exists()
    umask = os.umask(0)
    try:
        for mode in (0o600, 0o660):
            with Sockets(SocketOptions(ipc_mode=mode)) as sockets:
                router = sockets.router(f"ipc://{path}")
                assert stat.S_IMODE(path.stat().st_mode) == mode
                assert connected(sockets.dealer(router.endpoint)).send(NO_TARGET, [b"x"]) is Delivery.SENT
                assert receive(router)[1] == [b"x"]
    finally:
        os.umask(umask)
    with Sockets() as sockets:
        longest = f"{tmp_path}/".ljust(107, "x")
        sockets.router(f"ipc://{longest}")
        for use in (sockets.router, sockets.dealer, sockets.push):
            with pytest.raises(ConfigError, match="1 to 107 bytes: choose a shorter one"):
                use(f"ipc://{longest}x")


def test_10_only_allowed_keys_get_in_and_they_change_without_a_restart(tmp_path: Path) -> None:
    keys, options = Keyring(tmp_path), SocketOptions(linger_ms=0, handshake_ms=1000)
    alice = keys.admitted(Role.CLIENT, "alice")
    mallory = keys.stranger(Role.CLIENT, "mallory")
    with RunningApp(keys=keys.broker) as broker, Sockets(options, alice) as hers, Sockets(options, mallory) as his:

        def tried(sockets: Sockets) -> tuple[Connection, Link]:
            """A new connection, and what becomes of it first."""
            link, events = sockets.watched_dealer(broker.endpoints.clients)
            return connection_event(receive(events)[1]), link

        def served(link: Link) -> bool:
            connected(link).send(NO_TARGET, wire.encode(wire.Hello("me", "test")))
            return isinstance(wire.decode(receive(link)[1]), wire.Welcome)

        made, link = tried(hers)
        assert made is Connection.MADE
        assert served(link)
        made, link = tried(his)
        assert made is Connection.REFUSED
        keys.broker.allow(Role.CLIENT, "mallory", mallory.folder.pair(Role.CLIENT).public)
        assert served(link)
        keys.broker.forbid(Role.CLIENT, "alice")
        assert tried(hers)[0] is Connection.REFUSED


def test_12_nothing_is_queued_for_a_peer_that_is_not_there(tmp_path: Path, sockets: Sockets) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    links = [sockets.dealer(endpoint), sockets.push(endpoint), sockets.watched_dealer(endpoint)[0]]
    assert [link.send(NO_TARGET, [b"to nobody"]) for link in links] == [Delivery.FULL] * 3
    with Sockets() as others:
        pull = others.pull(endpoint)
        assert connected(links[1]).send(NO_TARGET, [b"to somebody"]) is Delivery.SENT
        assert receive(pull)[1] == [b"to somebody"]


def test_13_no_wake_up_is_lost_when_a_handler_sends_and_leaves_messages_waiting(
    sockets: Sockets, reactor: Reactor
) -> None:
    router = sockets.router(ANY)
    asker = connected(sockets.dealer(router.endpoint))
    questions = [number.to_bytes(2, "big") for number in range(700)]
    assert all(asker.send(NO_TARGET, [question]) is Delivery.SENT for question in questions)
    answered: list[bytes] = []

    def answer(peer: bytes, frames: list[bytes]) -> None:
        assert router.send(peer, frames) is Delivery.SENT
        answered.append(frames[0])

    reactor.add(router, answer)
    while len(answered) < len(questions):
        before = len(answered)
        reactor.turn(PATIENCE)
        assert len(answered) > before, "messages wait, and nobody wakes up"
    assert answered == questions
    assert [receive(asker)[1] for _ in questions] == [[question] for question in questions]


def test_14_a_backlog_that_never_ends_does_not_starve_timers(sockets: Sockets, reactor: Reactor) -> None:
    pull = sockets.pull(ANY)
    push = connected(sockets.push(pull.endpoint))
    handled: list[bytes] = []
    ran: list[int] = []

    def feed(_: bytes, frames: list[bytes]) -> None:
        handled.append(frames[0])
        assert len(handled) < 5000, "the timer has not run"
        push.send(NO_TARGET, [b"x"])
        assert pull.socket.poll(PATIENCE_MS, zmq.POLLIN)

    reactor.add(pull, feed)
    reactor.after(0.0, lambda: ran.append(len(handled)))
    push.send(NO_TARGET, [b"x"])
    assert pull.socket.poll(PATIENCE_MS, zmq.POLLIN)
    reactor.turn()
    assert len(ran) == 1
