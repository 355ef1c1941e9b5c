"""Pitfalls of knowing who lives: identities, heartbeats, and a store that may be away."""

from __future__ import annotations

import functools
import signal
from pathlib import Path

import pytest

from lighttts.broker.app import App
from lighttts.transport import wire
from lighttts.transport.transport import Sockets
from lighttts.workers.control import ControlLine
from tests.broker import peers
from tests.broker.harness import synth
from tests.broker.peers import Peer, RunningApp
from tests.pitfalls.rig import Crew, Hand, connected, credits, process, receive, status, wait_for, workers
from tests.redis_server import RedisServer


def test_04_a_new_boot_of_a_worker_neither_waits_for_nor_steals_from_the_one_before(sockets: Sockets) -> None:
    names = [f"r{number}" for number in range(8)]
    with RunningApp(heartbeat_s=0.3, expiry_s=600, stall_s=600, no_worker_s=600) as broker:

        def boots() -> set[bytes]:
            return {worker.identity for worker in broker.app._core._board.workers}

        client = Peer(sockets, broker.endpoints.clients)
        command = ["-m", "tests.pitfalls.victim", *broker.endpoints[1:], "the same name"]
        with process(*command) as first:
            wait_for(lambda: len(boots()) == 1, client)
            known = boots()
            first.send_signal(signal.SIGSTOP)
            with process(*command):
                wait_for(lambda: bool(boots() - known), client)
                first.send_signal(signal.SIGCONT)
                wait_for(lambda: credits(client) == [4, 4], client)
                encoder = Hand(sockets, broker.endpoints, "encode", 1)
                for name in names:
                    client.say(synth(name, output="tokens"))
                    encoder.encode(name, 5)
                heard = streams(client, len(names))
    assert {name: [frame.seq for frame in heard[name]] for name in names} == {name: [*range(5)] for name in names}
    assert len({frame.epoch for frames in heard.values() for frame in frames}) == 2


def streams(client: Peer, count: int) -> dict[str, list[wire.Tokens]]:
    """The frames of `count` requests up to their ends."""
    heard: dict[str, list[wire.Tokens]] = {}
    while count:
        match client.hear(wire.Message):
            case wire.Accepted(request_id=name):
                heard[name] = []
            case wire.Tokens() as frame:
                heard[frame.request_id].append(frame)
            case wire.End(request_id=name, frames=frames):
                assert len(heard[name]) == frames
                count -= 1
    return heard


class Clock:
    """A broker's clock, which the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_16_any_traffic_counts_as_alive_beats_do_not_pile_up_and_a_busy_broker_expires_nobody(
    tmp_path: Path, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(peers, "App", functools.partial(App, clock=clock))
    with RunningApp(heartbeat_s=1.0, expiry_s=5.0, stall_s=1e6, deadline_s=1e6, slow_client_s=1e6) as broker:
        client, onlooker = (Peer(sockets, broker.endpoints.clients) for _ in range(2))
        silent, talking = (
            Hand(sockets, broker.endpoints, stage, epoch) for epoch, stage in enumerate(("encode", "llm"), 1)
        )
        client.say(synth("r1", output="tokens"))
        silent.encode("r1", 100)
        client.hear(wire.Accepted)
        talking.hear(wire.GenerateWork)
        for seq in range(8):
            clock.now += 0.9
            talking.push(talking.token("r1", seq))
            assert client.hear(wire.Tokens).seq == seq
            let_it_turn(onlooker)
        assert workers(onlooker) == ["llm-2"]
        clock.now += 100.0
        let_it_turn(onlooker)
        talking.say(wire.Heartbeat(talking.epoch, 0, 0, 0))
        assert talking.hear(wire.Alive).known
    link = sockets.dealer(f"ipc://{tmp_path}/e")
    line = ControlLine(link)
    line.send(wire.Grant(1, 2))
    assert [line.beat(wire.Heartbeat(1, 0, 0, 0)) for _ in range(100)] == [False] * 100
    router = sockets.router(link.endpoint)
    connected(link)
    line.send(wire.Drain(1))
    assert [type(wire.decode(receive(router)[1])) for _ in range(2)] == [wire.Grant, wire.Drain]


def let_it_turn(client: Peer) -> None:
    """Returns when the broker has looked at its clock: it does so after it has answered the first question."""
    for _ in range(2):
        status(client)


def test_19_streams_go_on_while_redis_hangs_dies_and_comes_back_empty_and_new_requests_are_told(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    settings = {"state": f"{redis_server.url}?socket_timeout=0.1", "redis_breaker_failures": 2, "redis_breaker_s": 0.2}
    with RunningApp(expiry_s=600, stall_s=600, **settings) as broker:
        crew, client = Crew(sockets, broker.endpoints), Peer(sockets, broker.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        with redis_server.client() as look:
            look.execute_command("CLIENT", "PAUSE", 600_000)
        crew.bring_to_decoding("r1")
        frames = [crew.decode.audio("r1", seq, last=seq == 3) for seq in range(4)]
        crew.decode.push(*frames[:2])
        assert [client.hear(wire.Audio) for _ in range(2)] == frames[:2]
        refused(client, "while it hangs")
        redis_server.kill()
        crew.decode.push(*frames[2:])
        assert [client.hear(wire.Audio) for _ in range(2)] == frames[2:]
        assert client.hear(wire.End).frames == 4
        client.say(wire.EndAck("r1"))
        refused(client, "while it is dead")
        redis_server.start()
        wait_for(lambda: broker.app.health()[0], client)
        client.say(synth("when it is back"))
        client.hear(wire.Accepted)


def refused(client: Peer, request_id: str) -> None:
    """Asks for a request that cannot be stored now."""
    client.say(synth(request_id))
    error = client.hear(wire.Error)
    assert (error.request_id, error.code, error.retryable) == (request_id, "unavailable", True)
    client.say(wire.EndAck(request_id))
