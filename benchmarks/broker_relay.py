"""Frames a second that the broker relays from workers to clients, beside a bare pyzmq relay of the same frames.

Three processes each time: a source that pushes frames, the relay, a sink that takes them on the clients' sockets.
The relay is stopped (SIGSTOP) while the source queues all frames, so that what is measured, from SIGCONT to the last
frame at the sink, is the relay under full load. The bare relay drains a PULL and sends to a ROUTER, nothing else; the
broker is the real one: it checks each frame, keeps order and clients' credit, counts and measures. Runs alternate, the
median counts.

broker   audio, requests in memory
redis    audio, requests stored in Redis
stored   requests stored in Redis; every other frame is one of tokens, which is stored too and goes to the decode worker
curve    audio, requests in memory, everything over CURVE

    python -m benchmarks.broker_relay [--frames N] [--streams N] [--samples N] [--runs N] [--json]
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
from typing import NamedTuple

import numpy as np
import zmq

from benchmarks.rig import ANY, TOKENS, UNBOUNDED, Plan, Workers, audio, broker, redis_server, request, send, tokens
from lighttts.cli.main import main as lighttts_cli
from lighttts.transport import wire
from lighttts.transport.keyfiles import Role
from lighttts.transport.reactor import DRAIN_BUDGET
from lighttts.transport.sockets import SocketOptions, make_socket
from lighttts.transport.transport import Sockets

CLIENTS = 8
WINDOW = 256
"""Frames in flight for each request: as many as the broker allows, so that the one sink is not what is measured."""


class Figure(NamedTuple):
    """Frames a second, and microseconds of the relaying thread's CPU time for each."""

    frames_per_second: float
    cpu_us: float


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


def source(pipe: Connection, plan: Plan, endpoint: str, results: str) -> None:
    """Plays the workers (if there is an address for them) up to where audio is due, then pushes all of it."""
    with Sockets(UNBOUNDED, plan.proof(Role.WORKER)) as sockets:
        workers = Workers(sockets, results)
        if endpoint:
            workers.serve(sockets, plan, endpoint)
        workers.push.socket.poll(flags=zmq.POLLOUT)
        pipe.send("ready")
        pipe.recv()
        samples, ids = np.zeros(plan.samples, np.int16), np.zeros(TOKENS, np.int32)
        for seq in range(plan.each):
            for stream in range(plan.streams):
                if plan.stored:
                    workers.push.broadcast(wire.encode(tokens(plan, stream, seq, ids)))
                workers.push.broadcast(wire.encode(audio(plan, stream, seq, samples)))
        pipe.send("queued")
        while not pipe.poll(0.001):
            workers.drain()


def sink(pipe: Connection, plan: Plan, clients: str, *, asks: bool) -> None:
    """Takes all frames, granting credit as it goes; says when the last one came. `asks`: the relay wants requests."""
    with Sockets(UNBOUNDED, plan.proof(Role.CLIENT)) as sockets:
        links = [sockets.dealer(clients) for _ in range(CLIENTS)]
        for number, link in enumerate(links):
            while not link.broadcast([f"{number:04}".encode()]):
                time.sleep(0.001)
        for stream in range(plan.streams if asks else 0):
            send(links[stream % CLIENTS], request(stream, WINDOW))
        poller = zmq.Poller()
        for link in links:
            poller.register(link.socket, zmq.POLLIN)
        by_socket = {link.socket: link for link in links}
        head, owed, due = wire.head(wire.Audio, wire.VERSION), [0] * plan.streams, plan.each * plan.streams
        while due:
            for socket, _ in poller.poll():
                link = by_socket[socket]
                for _, frames in link.receive(DRAIN_BUDGET):
                    if frames[0] != head:
                        continue
                    due -= 1
                    name = wire.unpack_body(wire.Audio, frames[1])[0]
                    stream = int(str(name)[8:])
                    owed[stream] += 1
                    if asks and owed[stream] == WINDOW // 2:
                        owed[stream] = 0
                        send(link, wire.Credit(str(name), WINDOW // 2))
        pipe.send(time.monotonic())
        pipe.recv()


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
    runs: dict[str, list[Figure]] = {name: [] for name in ("bare", "broker", "redis", "stored", "curve")}
    with tempfile.TemporaryDirectory() as folder, redis_server() as url:
        with contextlib.redirect_stdout(sys.stderr):
            lighttts_cli(["--keys", folder, "keys", "create"])
        for _ in range(options.runs):
            runs["bare"].append(measure(bare, plan))
            runs["broker"].append(measure(broker, plan))
            runs["redis"].append(measure(broker, plan._replace(state=url)))
            runs["stored"].append(measure(broker, plan._replace(state=url, stored=True)))
            runs["curve"].append(measure(broker, plan._replace(keys=folder)))
    middle = {name: Figure(*map(statistics.median, zip(*figures, strict=True))) for name, figures in runs.items()}
    bare_rate = middle["bare"].frames_per_second
    shares = {name: figure.frames_per_second / bare_rate for name, figure in middle.items()}
    if options.json:
        figures = {name: {**figure._asdict(), "share": shares[name]} for name, figure in middle.items()}
        print(json.dumps({"frames": plan.frames, "streams": plan.streams, "samples": plan.samples, **figures}))
        return
    print(f"{plan.frames} frames of {plan.samples} samples, {plan.streams} requests, {CLIENTS} clients")
    print(f"{'relay':<8}{'frames/s':>12}{'of bare':>10}{'CPU us/frame':>14}")
    for name, figure in middle.items():
        print(f"{name:<8}{figure.frames_per_second:>12,.0f}{shares[name]:>10.0%}{figure.cpu_us:>14.1f}")


if __name__ == "__main__":
    main()
