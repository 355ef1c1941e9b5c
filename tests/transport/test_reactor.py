"""The reactor: one loop in which nothing starves, with a clock of the test's own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import zmq

from lighttts.transport.reactor import DRAIN_BUDGET, Reactor
from lighttts.transport.transport import NO_TARGET, Delivery, Link, Sockets

ANY_PORT = "tcp://127.0.0.1:0"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reactor(clock: Clock) -> Iterator[Reactor]:
    reactor = Reactor(clock)
    yield reactor
    reactor.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with Sockets() as sockets:
        yield sockets


def pair(sockets: Sockets, backlog: int) -> Link:
    """A PULL with `backlog` messages waiting in it."""
    pull = sockets.pull(ANY_PORT)
    push = sockets.push(pull.endpoint)
    for number in range(backlog):
        assert push.socket.poll(10_000, zmq.POLLOUT)
        assert push.send(NO_TARGET, [number.to_bytes(4, "big")]) is Delivery.SENT
    assert pull.socket.poll(10_000, zmq.POLLIN)
    return pull


# ---- messages ----


def test_a_turn_drains_at_most_the_budget_of_each_socket_so_that_none_starves(
    reactor: Reactor, sockets: Sockets
) -> None:
    counts = {"busy": 0, "quiet": 0}
    busy, quiet = pair(sockets, 3 * DRAIN_BUDGET), pair(sockets, 1)

    def count(name: str) -> None:
        counts[name] += 1

    reactor.add(busy, lambda peer, frames: count("busy"))
    reactor.add(quiet, lambda peer, frames: count("quiet"))
    reactor.turn()
    assert counts["busy"] <= DRAIN_BUDGET
    assert counts["quiet"] == 1
    while counts["busy"] < 3 * DRAIN_BUDGET:
        reactor.turn(10.0)
    assert counts["busy"] == 3 * DRAIN_BUDGET


def test_messages_of_a_socket_are_handled_in_order(reactor: Reactor, sockets: Sockets) -> None:
    got: list[int] = []
    reactor.add(pair(sockets, 300), lambda peer, frames: got.append(int.from_bytes(frames[0], "big")))
    while len(got) < 300:
        reactor.turn(10.0)
    assert got == [*range(300)]


def test_a_removed_socket_is_not_listened_to(reactor: Reactor, sockets: Sockets) -> None:
    pull = pair(sockets, 2)
    reactor.add(pull, lambda peer, frames: pytest.fail("it was"))
    reactor.remove(pull)
    reactor.remove(pull)
    reactor.turn()


def test_an_exception_of_a_handler_ends_the_loop_and_is_raised(reactor: Reactor, sockets: Sockets) -> None:
    def handler(peer: bytes, frames: list[bytes]) -> None:
        raise ZeroDivisionError

    reactor.add(pair(sockets, 1), handler)
    with pytest.raises(ZeroDivisionError):
        reactor.run()


# ---- timers ----


def test_timers_run_when_due_in_the_order_of_their_time(reactor: Reactor, clock: Clock) -> None:
    ran: list[str] = []
    reactor.after(2.0, lambda: ran.append("two"))
    reactor.after(1.0, lambda: ran.append("one"))
    reactor.after(1.0, lambda: ran.append("one again"))
    reactor.turn()
    assert ran == []
    clock.now += 1.0
    reactor.turn()
    assert ran == ["one", "one again"]
    clock.now += 5.0
    reactor.turn()
    assert ran == ["one", "one again", "two"]


def test_a_repeated_timer_that_was_held_up_runs_once_and_goes_on(reactor: Reactor, clock: Clock) -> None:
    ran: list[float] = []
    reactor.every(1.0, lambda: ran.append(clock.now))
    for step in (0.5, 0.5, 1.0, 7.0, 0.0, 1.0):
        clock.now += step
        reactor.turn()
    assert ran[:3] == [1001.0, 1002.0, 1009.0]
    assert len(ran) <= 5


def test_timers_are_not_delayed_by_a_backlog(reactor: Reactor, clock: Clock, sockets: Sockets) -> None:
    handled: list[int] = []
    ran: list[int] = []
    reactor.add(pair(sockets, 4 * DRAIN_BUDGET), lambda peer, frames: handled.append(1))
    reactor.after(0.0, lambda: ran.append(len(handled)))
    reactor.turn()
    assert ran
    assert ran[0] <= DRAIN_BUDGET


# ---- posting ----


def test_posted_calls_run_in_the_loops_thread_in_order(reactor: Reactor) -> None:
    ran: list[tuple[int, str]] = []
    threads = [
        threading.Thread(
            target=lambda index=index: [
                reactor.post(lambda n=n: ran.append((index, threading.current_thread().name))) for n in range(50)
            ]
        )
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    while len(ran) < 200:
        reactor.turn(10.0)
    for thread in threads:
        thread.join()
    assert {name for _, name in ran} == {threading.current_thread().name}
    assert sorted(index for index, _ in ran) == sorted([*range(4)] * 50)


def test_a_call_posted_by_a_posted_call_runs_in_a_later_turn(reactor: Reactor) -> None:
    ran: list[int] = []

    def again() -> None:
        ran.append(len(ran))
        reactor.post(again)

    reactor.post(again)
    for turn in range(1, 4):
        reactor.turn(10.0)
        assert len(ran) == turn


def test_stop_from_another_thread_ends_a_waiting_loop(reactor: Reactor) -> None:
    stopper = threading.Thread(target=reactor.stop)
    reactor.post(stopper.start)
    reactor.run()
    stopper.join()


def test_a_signal_handler_may_post(reactor: Reactor) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: reactor.stop())
    try:
        reactor.post(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        reactor.run()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_after_turn_runs_once_for_everything_that_happened(reactor: Reactor, sockets: Sockets) -> None:
    turns: list[int] = []
    handled: list[int] = []
    reactor.add(pair(sockets, 10), lambda peer, frames: handled.append(1))
    reactor.after_turn(lambda: turns.append(len(handled)))
    while len(handled) < 10:
        reactor.turn(10.0)
    assert len(turns) <= len(handled)
    assert turns[-1] == 10
    reactor.turn()
    assert turns[-1] == 10
    assert len(turns) <= 10
