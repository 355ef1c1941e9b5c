"""Pitfalls of streams: what is sent arrives, all of it, once, in order, and its end is agreed on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from lighttts.broker import app
from lighttts.client import AsyncClient, Client
from lighttts.errors import ProtocolError
from lighttts.transport import wire
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.harness import synth
from tests.broker.peers import Peer, RunningApp
from tests.client.fake_broker import FakeBroker, accept_only, chunk_of, frame_of
from tests.pitfalls.rig import PATIENCE, Crew, status, wait_for


def test_02_a_client_whose_queue_is_full_loses_nothing_and_delays_no_other(sockets: Sockets) -> None:
    with (
        RunningApp(expiry_s=600, stall_s=600, options=SocketOptions(high_water_mark=2)) as running,
        Sockets(SocketOptions(high_water_mark=2, linger_ms=0)) as narrow,
    ):
        crew = Crew(sockets, running.endpoints)
        slow, quick = Peer(narrow, running.endpoints.clients), Peer(sockets, running.endpoints.clients)
        for client, name in ((slow, "slow"), (quick, "quick")):
            client.say(synth(name, credit=256))
            client.hear(wire.Accepted)
            crew.bring_to_decoding(name)
        # Far more than the kernel's buffers and both high-water marks hold.
        dammed = [crew.decode.audio("slow", seq, last=seq == 39, samples=250_000) for seq in range(40)]
        crew.decode.push(*dammed)
        wait_for(lambda: running.app._core.load().held_bytes > 0, quick)
        flowing = [crew.decode.audio("quick", seq, last=seq == 49) for seq in range(50)]
        crew.decode.push(*flowing)
        assert [quick.hear(wire.Audio) for _ in flowing] == flowing
        assert quick.hear(wire.End).frames == len(flowing)
        assert [slow.hear(wire.Audio) for _ in dammed] == dammed
        assert slow.hear(wire.End).frames == len(dammed)


def test_05_a_broker_told_to_end_waits_until_its_clients_have_acknowledged_the_end(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ACKNOWLEDGE_S", PATIENCE)
    with RunningApp(expiry_s=600, stall_s=600) as running:
        crew, client = Crew(sockets, running.endpoints), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
        made = [crew.decode.audio("r1", seq, last=seq == 9) for seq in range(10)]
        crew.decode.push(*made)
        assert [client.hear(wire.Audio) for _ in made] == made
        assert client.hear(wire.End).frames == len(made)
        running.app.terminate()
        wait_for(lambda: running.app.health()[1] == "shutting down", client)
        assert status(client).completed == 1
        client.say(wire.EndAck("r1"))
        running.wait()


def test_15_a_cancelled_wait_for_a_chunk_loses_none() -> None:
    asked: list[tuple[bytes, wire.Synth]] = []

    def accept(broker: FakeBroker, peer: bytes, message: wire.Synth) -> None:
        asked.append((peer, message))
        accept_only(broker, peer, message)

    def stream(broker: FakeBroker) -> None:
        [(peer, request)] = asked
        for number in range(broker.chunks):
            broker.send(peer, frame_of(request, number))
        broker.send(peer, wire.End(request.request_id, broker.chunks, 25 * broker.chunks, 1))

    async def read(broker: FakeBroker) -> list[np.ndarray]:
        async with AsyncClient(broker.endpoint) as client:
            synthesis = client.synthesize("Hello.", voice="heart")
            await synthesis.sample_rate()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(synthesis), 0.001)
            broker.do(lambda: stream(broker))
            return [chunk async for chunk in synthesis]

    with FakeBroker(chunks=10, script={wire.Synth: accept}) as broker:
        heard = asyncio.run(read(broker))
    [(_, request)] = asked
    assert [chunk.tolist() for chunk in heard] == [chunk_of(request, number).tolist() for number in range(10)]


@pytest.mark.parametrize("wrong", [0, 2], ids=["repeated", "gap"])
def test_20_a_repeated_a_missing_or_another_attempts_frame_is_caught_by_the_broker_and_by_the_client(
    sockets: Sockets, wrong: int
) -> None:
    with RunningApp(expiry_s=600, stall_s=600) as running:
        crew, client = Crew(sockets, running.endpoints), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
        first = crew.decode.audio("r1", 0)
        crew.decode.push(crew.decode.audio("r1", 0, attempt=9), first, crew.decode.audio("r1", wrong))
        assert client.hear(wire.Audio) == first
        assert client.hear(wire.Error).code == "worker_failed"

    def misspeak(broker: FakeBroker, peer: bytes, message: wire.Synth) -> None:
        accept_only(broker, peer, message)
        for number in (0, wrong):
            broker.send(peer, frame_of(message, number))

    with (
        FakeBroker(script={wire.Synth: misspeak}) as broker,
        Client(broker.endpoint) as client_,
        client_.synthesize("Hello.", voice="heart") as synthesis,
    ):
        assert len(next(synthesis)) == 480
        with pytest.raises(ProtocolError, match="lost or repeated"):
            next(synthesis)


def test_21_a_cancel_that_meets_the_end_changes_nothing_and_a_repeated_one_is_one(sockets: Sockets) -> None:
    with RunningApp(expiry_s=600, stall_s=600) as running:
        crew, client = Crew(sockets, running.endpoints), Peer(sockets, running.endpoints.clients)
        client.say(synth("ended"))
        client.hear(wire.Accepted)
        crew.bring_to_decoding("ended")
        crew.decode.push(crew.decode.audio("ended", 0, last=True))
        client.hear(wire.Audio)
        client.hear(wire.End)
        client.say(*[wire.Cancel("ended")] * 3)
        assert status(client).completed == 1
        client.say(wire.EndAck("ended"), synth("cancelled"))
        client.hear(wire.Accepted)
        crew.bring_to_decoding("cancelled")
        client.say(*[wire.Cancel("cancelled")] * 3)
        assert client.hear(wire.Error).code == "cancelled"
        after = status(client)
        assert (after.active, after.completed, after.failed) == (0, 1, 1)
        assert crew.decode.hear(wire.Abort).request_id == "cancelled"
        crew.decode.say(wire.Heartbeat(crew.decode.epoch, 0, 0, 0))
        assert crew.decode.hear(wire.Alive).known
        client.say(wire.EndAck("cancelled"))
        wait_for(lambda: running.app._core.idle, client)
