"""Pitfalls of handing out work: nobody gets what it has not asked for."""

from __future__ import annotations

import signal

from lighttts.transport import wire
from lighttts.transport.transport import Sockets
from tests.broker.harness import synth
from tests.broker.peers import Peer, RunningApp
from tests.pitfalls.rig import Hand, credits, process, status, told, wait_for

STUCK = """
import signal, sys
from lighttts.transport.transport import Sockets
from tests.broker.peers import Peer
from lighttts.transport import wire
worker = Peer(Sockets(), sys.argv[1], b"stuck")
worker.say(wire.Register("stuck", 7, "encode", "", "", 24000, ("anna",)))
worker.hear(wire.Registered)
worker.say(wire.Grant(7, 1))
print("granted", file=sys.stderr, flush=True)
signal.pause()
"""


def test_03_a_stuck_worker_swallows_only_what_it_has_granted_credit_for(sockets: Sockets) -> None:
    names = [f"r{number}" for number in range(20)]
    with RunningApp(heartbeat_s=0.05, expiry_s=600, stall_s=600) as running:
        client = Peer(sockets, running.endpoints.clients)
        with process("-c", STUCK, running.endpoints.workers) as stuck:
            assert told(stuck) == "granted"
            wait_for(lambda: credits(client) == [1], client)
            client.say(*(synth(name) for name in names))
            worker = Hand(sockets, running.endpoints, "encode", 1)
            taken = [worker.hear(wire.EncodeWork).request_id for _ in names[1:]]
            assert [client.hear(wire.Accepted).request_id for _ in names] == names
            held = {row.worker: row.active for row in status(client).workers}
            assert held == {"stuck": 1, "encode-1": len(names) - 1}
            stuck.send_signal(signal.SIGKILL)
            taken.append(worker.hear(wire.EncodeWork).request_id)
        assert sorted(taken) == sorted(names)


def test_11_a_worker_that_has_connected_gets_nothing_before_it_is_registered_and_has_granted_credit(
    sockets: Sockets,
) -> None:
    with RunningApp(expiry_s=600) as running:
        client = Peer(sockets, running.endpoints.clients)
        worker = Peer(sockets, running.endpoints.workers, b"slow joiner")

        def beat() -> bool:
            """Whether the broker knows the worker, which has been sent nothing before the answer."""
            worker.say(wire.Heartbeat(5, 0, 0, 0))
            return worker.hear(wire.Alive).known

        # With a prompt: a voice's name that no worker has told yet is looked up first, and may be overtaken.
        client.say(synth("r1", voice="", prompt=b"RIFF"))
        status(client)
        worker.say(wire.Grant(5, 1))
        assert not worker.hear(wire.Alive).known
        worker.say(wire.Register("slow joiner", 5, "encode", "", "", 24000, ("anna",)))
        worker.hear(wire.Registered)
        client.say(synth("r2"))
        assert client.hear(wire.Accepted).request_id == "r2"
        assert beat()
        worker.say(wire.Grant(5, 1))
        assert worker.hear(wire.EncodeWork).request_id == "r1"
        assert beat()
        worker.say(wire.Grant(5, 1))
        assert worker.hear(wire.EncodeWork).request_id == "r2"
