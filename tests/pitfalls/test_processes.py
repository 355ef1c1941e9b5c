"""Pitfalls of processes: what they may open, how they die, how they come back, how they multiply."""

from __future__ import annotations

import logging
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from lighttts.transport import wire
from lighttts.transport.transport import Sockets
from tests.broker.harness import synth
from tests.broker.peers import Peer, RunningApp
from tests.client.fake_broker import FakeBroker
from tests.pitfalls.rig import PATIENCE, Hand, broker_process, process, tell, wait_for, wait_until_known, workers
from tests.workers.fakes import BOOT, Address, ScriptedStage, running

ENDLESS = 100_000
"""Tokens of a sentence that is never finished."""


def test_07_many_connections_do_not_end_a_broker_that_was_started_with_few_descriptors(
    tmp_path: Path, sockets: Sockets
) -> None:
    path = tmp_path / "clients"
    settings = [f"clients=ipc://{path}", "workers=tcp://127.0.0.1:0", "results=tcp://127.0.0.1:0"]
    with broker_process(*settings, limit="ulimit -S -n 64") as broker, ExitStack() as connections:
        for _ in range(200):
            connection = connections.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(path))
            # libzmq's greeting: the connection has been accepted.
            assert connection.recv(1)
        client = Peer(sockets, f"ipc://{path}")
        client.say(wire.Hello("me", "test"))
        client.hear(wire.Welcome)
        assert broker.poll() is None


CLOSED, SILENT, STUCK = "its connection closed", "not heard for", "its engine has not moved"
DEATHS: dict[str, tuple[signal.Signals | str, str, dict[str, float]]] = {
    "SIGKILL": (signal.SIGKILL, CLOSED, {}),
    "abort in native code": ("aborts", CLOSED, {}),
    "SIGSTOP": (signal.SIGSTOP, SILENT, {"expiry_s": 0.5}),
    "compute holds the GIL": ("holds the GIL", SILENT, {"expiry_s": 0.5}),
    "compute hangs": ("hangs", STUCK, {"stall_s": 0.5}),
}
"""The signal that is sent, or the fate; what it is noticed by; and the bound for that."""


@pytest.mark.parametrize("death", DEATHS)
def test_17_a_worker_that_dies_in_mid_stream_is_noticed(sockets: Sockets, death: str) -> None:
    cause, sign, bound = DEATHS[death]
    settings = {"heartbeat_s": 0.1, "expiry_s": 600, "stall_s": 600, "no_worker_s": 600, **bound}
    fate = [cause] if isinstance(cause, str) else []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with (
        capture_logs() as logs,
        RunningApp(**settings) as broker,
        process("-m", "tests.pitfalls.victim", *broker.endpoints[1:], "victim", *fate) as victim,
    ):
        client, onlooker = (Peer(sockets, broker.endpoints.clients) for _ in range(2))
        ask(client, "r1", Hand(sockets, broker.endpoints, "encode", 1), ENDLESS)
        assert [client.hear(wire.Tokens).seq for _ in range(3)] == [0, 1, 2]
        assert "victim" in workers(onlooker)
        if isinstance(cause, signal.Signals):
            victim.send_signal(cause)
        else:
            tell(victim)
        wait_for(lambda: "victim" not in workers(onlooker), onlooker)
    [lost] = [log for log in logs if log["event"] == "worker lost" and log["worker"] == "victim"]
    assert lost["why"].startswith(sign)
    assert lost["requests"] == 1


def test_18_after_a_broker_restart_workers_serve_again_and_frames_of_another_epoch_are_refused(
    tmp_path: Path, sockets: Sockets
) -> None:
    clients, *ends = (f"ipc://{tmp_path}/{name}" for name in ("clients", "workers", "results"))
    settings = [f"clients={clients}", f"workers={ends[0]}", f"results={ends[1]}", "expiry_s=600", "stall_s=600"]
    stage, where = ScriptedStage(), Address(*ends)
    with ExitStack() as stack:
        with broker_process(*settings) as broker:
            stack.enter_context(running(stage, where))
            before = Peer(sockets, clients)
            ask(before, "before", Hand(sockets, where, "encode", 1), ENDLESS)
            assert [before.hear(wire.Tokens).seq for _ in range(3)] == [0, 1, 2]
            broker.send_signal(signal.SIGKILL)
        stack.enter_context(broker_process(*settings))
        after = Peer(sockets, clients)
        wait_until_known(after, BOOT.worker)
        stage.gate.clear()
        stage.in_step.clear()
        zombie = Hand(sockets, where, "llm", 77, credit=0)
        ask(after, "after", Hand(sockets, where, "encode", 2), 3)
        assert stage.in_step.wait(PATIENCE)
        for orphan in ("before", "after"):
            zombie.push(zombie.token(orphan, 0))
            assert zombie.hear(wire.Abort).request_id == orphan
        stage.gate.set()
        frames = [after.hear(wire.Tokens) for _ in range(3)]
        assert [(frame.request_id, frame.epoch, frame.seq) for frame in frames] == [
            ("after", BOOT.epoch, seq) for seq in range(3)
        ]
        after.hear(wire.End)
        assert before.quiet()


def ask(client: Peer, request_id: str, encoder: Hand, length: int) -> None:
    """Has a request accepted and encoded; its output is `length` tokens, of which the client takes some."""
    client.say(synth(request_id, output="tokens", credit=3))
    encoder.encode(request_id, length)
    client.hear(wire.Accepted)


FORKS = """
import os, sys
from lighttts.client import Client
from lighttts.errors import Unavailable
client = Client(sys.argv[1])
assert client.voices()
child = os.fork()
if child == 0:
    try:
        client.voices()
    except Unavailable as error:
        assert "spawn" in error.text
        sys.exit(7)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.voices()
"""


def test_22_a_fork_of_a_process_with_open_sockets_is_refused_its_use_and_harms_nobody() -> None:
    with FakeBroker() as broker, process("-c", FORKS, broker.endpoint) as forking:
        _, stderr = forking.communicate(timeout=PATIENCE)
        assert (forking.returncode, stderr) == (0, "")
