"""Frames a second that the broker relays from workers to clients, beside a bare pyzmq relay of the same frames.

Three processes each time: a source that pushes audio frames, the relay, a sink that takes them on the clients' sockets.
The relay is stopped (SIGSTOP) while the source queues all frames, so that what is measured, from SIGCONT to the last
frame at the sink, is the relay under full load. The bare relay drains a PULL and sends to a ROUTER, nothing else; the
broker is the real one: it checks each frame, keeps order and clients' credit, counts and measures. It is measured
without keys and, last, with: then everything passes over CURVE. Runs alternate, the median counts.

    python benchmarks/broker_relay.py [--frames N] [--streams N] [--samples N] [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zmq

from lighttts.broker.app import App
from lighttts.cli.main import main as lighttts_cli
from lighttts.config import BrokerConfig, LogConfig
from lighttts.logs import configure
from lighttts.transport import wire
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.reactor import DRAIN_BUDGET
from lighttts.transport.security import Proof
from lighttts.transport.sockets import SocketOptions, make_socket
from lighttts.transport.transport import Link, Sockets

CLIENTS = 8
WINDOW = 256
"""Frames in flight for each request: as many as the broker allows, so that the one sink is not what is measured."""
ANY = "tcp://127.0.0.1:0"
UNBOUNDED = SocketOptions(high_water_mark=0)
EPOCHS = dict(zip(wire.STAGES, (1, 2, 3), strict=True))


class Plan(NamedTuple):
    """What one run relays: `frames` frames of `samples` 16-bit samples, in turn for each of `streams` requests.

    `keys` is the key folder, if there is one.
    """

    frames: int
    streams: int
    samples: int
    keys: str = ""

    def proof(self, role: Role) -> Proof | None:
        """What to connect with."""
        return Proof(KeyFolder(Path(self.keys)), role) if self.keys else None

    @property
    def each(self) -> int:
        """Frames of one request."""
        return self.frames // self.streams


class Figure(NamedTuple):
    """Frames a second, and microseconds of the relaying thread's CPU time for each."""

    frames_per_second: float
    cpu_us: float


# ---- relays: each tells its endpoints (clients, workers, results), then runs until it is ended -----------------------


def broker(pipe: Connection, plan: Plan) -> None:
    """The real broker."""
    configure("broker", LogConfig(level="error", format="json"))
    settings = BrokerConfig(clients=ANY, workers=ANY, results=ANY, expiry_s=600, metrics_port=None)
    app = App(settings, keys=KeyFolder(Path(plan.keys)) if plan.keys else None)
    signal.signal(signal.SIGTERM, lambda *_: app.terminate())
    pipe.send(app.endpoints)
    app.run()
    app.close()


def bare(pipe: Connection, plan: Plan) -> None:
    """Nothing but pyzmq, drained as the broker's loop does. Frame k goes to client k, the next to the next."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, router = (make_socket(context, kind, SocketOptions()) for kind in (zmq.PULL, zmq.ROUTER))
    for socket in (pull, router):
        socket.bind(ANY)
    endpoints = [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (router, pull)]
    pipe.send((endpoints[0], "", endpoints[1]))
    peers = [peer for peer, _ in sorted((router.recv_multipart() for _ in range(CLIENTS)), key=lambda hello: hello[1])]
    pipe.send("ready")
    poller = zmq.Poller()
    poller.register(pull, zmq.POLLIN)
    count = 0
    while count < plan.frames:
        poller.poll()
        for _ in range(DRAIN_BUDGET):
            try:
                frames = pull.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            router.send_multipart([peers[count % CLIENTS], *frames])
            count += 1
    pipe.recv()


# ---- around the relay ------------------------------------------------------------------------------------------------


def source(pipe: Connection, plan: Plan, workers: str, results: str) -> None:
    """Plays the workers (if there is an address for them) up to where audio is due, then pushes all of it."""
    with Sockets(UNBOUNDED, plan.proof(Role.WORKER)) as sockets:
        push = sockets.push(results)
        if workers:
            _play_workers(sockets, push, plan, workers)
        push.socket.poll(flags=zmq.POLLOUT)
        pipe.send("ready")
        pipe.recv()
        for seq in range(plan.each):
            for stream in range(plan.streams):
                push.broadcast(_frame(plan, stream, seq))
        pipe.send("queued")
        pipe.recv()


def _frame(plan: Plan, stream: int, seq: int) -> list[bytes | memoryview]:
    samples = np.zeros(plan.samples, np.int16)
    last = seq == plan.each - 1
    return wire.encode(
        wire.Audio(f"request-{stream}", 0, EPOCHS["decode"], seq, 0, last, seq * plan.samples, seq, samples)
    )


def _play_workers(sockets: Sockets, push: Link, plan: Plan, endpoint: str) -> None:
    links = {stage: sockets.dealer(endpoint, stage.encode()) for stage in wire.STAGES}
    for stage, link in links.items():
        _send(link, wire.Register(stage, EPOCHS[stage], stage, "", "", 24000, ("voice",)))
        _send(link, wire.Grant(EPOCHS[stage], plan.streams))
    waiting = plan.streams
    while waiting:
        for stage, link in links.items():
            for _, frames in link.receive(DRAIN_BUDGET):
                message = wire.decode(frames)
                if isinstance(message, wire.EncodeWork | wire.GenerateWork):
                    _send(push, _result(message, EPOCHS[stage]))
                # A decode worker has all it needs when the last tokens are there.
                waiting -= stage == "decode" and isinstance(message, wire.Tokens)
        time.sleep(0.001)


def _result(work: wire.EncodeWork | wire.GenerateWork, epoch: int) -> wire.Message:
    if isinstance(work, wire.GenerateWork):
        return wire.Tokens(work.request_id, 0, epoch, 0, 0, True, True, np.zeros(25, np.int32))
    ids, mel = np.zeros(1, np.int32), np.zeros((2, wire.MEL_BINS), np.float32)
    embedding = np.zeros(wire.EMBEDDING_SIZE, np.float32)
    return wire.Encoded(work.request_id, 0, epoch, (1,), "key", ids, ids, ids, ids, mel, embedding)


def _send(link: Link, message: wire.Message) -> None:
    frames = wire.encode(message)
    while not link.broadcast(frames):
        time.sleep(0.001)


def sink(pipe: Connection, plan: Plan, clients: str, *, asks: bool) -> None:
    """Takes all frames, granting credit as it goes; says when the last one came. `asks`: the relay wants requests."""
    with Sockets(UNBOUNDED, plan.proof(Role.CLIENT)) as sockets:
        links = [sockets.dealer(clients) for _ in range(CLIENTS)]
        for number, link in enumerate(links):
            while not link.broadcast([f"{number:04}".encode()]):
                time.sleep(0.001)
        for stream in range(plan.streams if asks else 0):
            _send(links[stream % CLIENTS], _request(stream))
        poller = zmq.Poller()
        for link in links:
            poller.register(link.socket, zmq.POLLIN)
        by_socket = {link.socket: link for link in links}
        head, owed, count = _frame(plan, 0, 0)[0], [0] * plan.streams, 0
        while count < plan.frames:
            for socket, _ in poller.poll():
                link = by_socket[socket]
                for _, frames in link.receive(DRAIN_BUDGET):
                    if frames[0] != head:
                        continue
                    count += 1
                    name = wire.unpack_body(wire.Audio, frames[1])[0]
                    stream = int(str(name)[8:])
                    owed[stream] += 1
                    if asks and owed[stream] == WINDOW // 2:
                        owed[stream] = 0
                        _send(link, wire.Credit(str(name), WINDOW // 2))
        pipe.send(time.monotonic())
        pipe.recv()


def _request(stream: int) -> wire.Synth:
    return wire.Synth(f"request-{stream}", "Text.", "voice", "", 0, 1.0, "audio", "s16", 0, WINDOW, b"")


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(relay: Callable[[Connection, Plan], None], plan: Plan) -> Figure:
    """One run of `relay`."""
    spawn = multiprocessing.get_context("spawn")
    relay_pipe, relay_end = spawn.Pipe()
    process = spawn.Process(target=relay, args=(relay_end, plan))
    process.start()
    clients, workers, results = relay_pipe.recv()
    sink_pipe, sink_end = spawn.Pipe()
    taker = spawn.Process(target=sink, args=(sink_end, plan, clients), kwargs={"asks": relay is broker})
    source_pipe, source_end = spawn.Pipe()
    giver = spawn.Process(target=source, args=(source_end, plan, workers, results))
    for other in (taker, giver):
        other.start()
    if relay is bare:
        relay_pipe.recv()
    source_pipe.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    source_pipe.send("go")
    source_pipe.recv()
    cpu = _thread_cpu_s(process.pid)
    start = time.monotonic()
    os.kill(process.pid, signal.SIGCONT)
    seconds = sink_pipe.recv() - start
    cpu = _thread_cpu_s(process.pid) - cpu
    for pipe in (sink_pipe, source_pipe, relay_pipe):
        pipe.send("end")
    for other in (taker, giver):
        other.join()
    process.terminate()
    process.join()
    return Figure(plan.frames / seconds, 1e6 * cpu / plan.frames)


def _thread_cpu_s(pid: int) -> float:
    """CPU seconds of a process' main thread."""
    with open(f"/proc/{pid}/task/{pid}/schedstat") as stat:
        return int(stat.read().split()[0]) / 1e9


def main() -> None:
    """Measures, then prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--streams", type=int, default=64, help="requests at once, a multiple of 8")
    parser.add_argument("--samples", type=int, default=480, help="16-bit samples in a frame")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = Plan(options.frames // options.streams * options.streams, options.streams, options.samples)
    runs: dict[str, list[Figure]] = {"bare": [], "broker": [], "curve": []}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            lighttts_cli(["--keys", folder, "keys", "create"])
        for _ in range(options.runs):
            runs["bare"].append(measure(bare, plan))
            runs["broker"].append(measure(broker, plan))
            runs["curve"].append(measure(broker, plan._replace(keys=folder)))
    middle = {name: Figure(*map(statistics.median, zip(*figures, strict=True))) for name, figures in runs.items()}
    share = middle["broker"].frames_per_second / middle["bare"].frames_per_second
    cpu_share = middle["bare"].cpu_us / middle["broker"].cpu_us
    curve = middle["curve"].frames_per_second / middle["broker"].frames_per_second
    if options.json:
        figures = {name: figure._asdict() for name, figure in middle.items()}
        print(json.dumps({**plan._asdict(), **figures, "share": share, "cpu_share": cpu_share, "curve": curve}))
        return
    print(f"{plan.frames} frames of {plan.samples} samples, {plan.streams} requests, {CLIENTS} clients")
    print(f"{'relay':<8}{'frames/s':>12}{'CPU us/frame':>14}")
    for name, figure in middle.items():
        print(f"{name:<8}{figure.frames_per_second:>12,.0f}{figure.cpu_us:>14.1f}")
    print(f"the broker relays {share:.0%} of what the bare relay does ({cpu_share:.0%} by CPU time of the thread)")
    print(f"over CURVE it relays {curve:.0%} of what it relays in plain")


if __name__ == "__main__":
    main()
