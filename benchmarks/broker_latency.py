"""Milliseconds from a worker's push to a client, and to the decode worker, at a steady rate with Redis on.

One process plays workers and clients and sends frames at random times (Poisson), so many a second; the broker and Redis
are processes of their own. Every other frame is one of tokens, which the broker stores in Redis and passes on to the
decode worker; the rest is audio for the clients. Each frame carries the time at which it was pushed. The same load goes
through a bare PULL -> ROUTER relay: what the broker adds is the difference.

    python -m benchmarks.broker_latency [--rate N] [--seconds N] [--streams N] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import zmq

from benchmarks.rig import (
    ANY,
    UNBOUNDED,
    Plan,
    Workers,
    audio,
    broker,
    redis_server,
    request,
    send,
    tokens,
)
from lighttts.transport import wire
from lighttts.transport.sockets import SocketOptions, make_socket
from lighttts.transport.transport import Sockets

WINDOW = 256
SAMPLES = 480
PERCENTILES = (50, 90, 99, 99.9)
HEADS = {wire.head(cls, wire.VERSION) for cls in (wire.Tokens, wire.Audio)}
Relay = Callable[[Connection, Plan], None]


def bare(pipe: Connection, plan: Plan) -> None:
    """A relay to one client that does nothing but relay."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, router = (make_socket(context, kind, SocketOptions()) for kind in (zmq.PULL, zmq.ROUTER))
    for socket in (pull, router):
        socket.bind(ANY)
    pipe.send((router.getsockopt_string(zmq.LAST_ENDPOINT), "", pull.getsockopt_string(zmq.LAST_ENDPOINT)))
    peer = router.recv_multipart()[0]
    while True:
        router.send_multipart([peer, *pull.recv_multipart()])


def now() -> np.ndarray:
    """The time in nanoseconds, as two 32-bit numbers."""
    return np.array([time.monotonic_ns()], np.int64).view(np.int32)


def pushed(frames: list[bytes]) -> int:
    """When a frame was pushed, in nanoseconds."""
    return int(np.frombuffer(frames[2][:8], np.int64)[0])


class Taker(threading.Thread):
    """Takes frames at the clients' and the decode worker's sockets, and notes how long each was under way."""

    def __init__(self, sockets: Sockets, plan: Plan, clients: str, workers: Workers, *, asks: bool) -> None:
        super().__init__(daemon=True)
        self.delays_ms: list[float] = []
        self._due = 2 * plan.each * plan.streams
        self._owed = [0] * plan.streams
        self._asks = asks
        self._workers = workers
        self._link = sockets.dealer(clients)
        send(self._link, wire.Hello("bench", "bench"))
        for stream in range(plan.streams if asks else 0):
            send(self._link, request(stream, WINDOW))

    def run(self) -> None:
        """Until all have come."""
        poller = zmq.Poller()
        decode = [self._workers.links["decode"]] if self._asks else []
        for link in (self._link, *decode):
            poller.register(link.socket, zmq.POLLIN)
        while len(self.delays_ms) < self._due:
            poller.poll()
            for link in (self._link, *decode):
                for _, frames in link.receive(64):
                    if frames[0] in HEADS:
                        self._take(frames)

    def _take(self, frames: list[bytes]) -> None:
        self.delays_ms.append((time.monotonic_ns() - pushed(frames)) / 1e6)
        if self._asks and frames[0] == wire.head(wire.Audio, wire.VERSION):
            stream = int(str(wire.unpack_body(wire.Audio, frames[1])[0])[8:])
            self._owed[stream] += 1
            if self._owed[stream] == WINDOW // 2:
                self._owed[stream] = 0
                send(self._link, wire.Credit(f"request-{stream}", WINDOW // 2))


def measure(relay: Relay, plan: Plan, rate: float) -> list[float]:
    """Milliseconds that each frame was under way."""
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=relay, args=(end, plan))
    process.start()
    clients, endpoint, results = pipe.recv()
    with Sockets(UNBOUNDED) as sockets:
        workers = Workers(sockets, results)
        taker = Taker(sockets, plan, clients, workers, asks=relay is broker)
        if endpoint:
            workers.serve(sockets, plan, endpoint)
        taker.start()
        workers.push.socket.poll(flags=zmq.POLLOUT)
        due = time.monotonic()
        for seq in range(plan.each):
            for stream in range(plan.streams):
                for make in (tokens_now, audio_now):
                    due += random.expovariate(rate)
                    time.sleep(max(0.0, due - time.monotonic()))
                    send(workers.push, make(plan, stream, seq))
        taker.join()
    process.terminate()
    process.join()
    return taker.delays_ms


def tokens_now(plan: Plan, stream: int, seq: int) -> wire.Tokens:
    """Two tokens: the time."""
    return tokens(plan, stream, seq, now())


def audio_now(plan: Plan, stream: int, seq: int) -> wire.Audio:
    """Audio that begins with the time."""
    samples = np.zeros(plan.samples, np.int16)
    samples[:4] = now().view(np.int16)
    return audio(plan, stream, seq, samples)


def main() -> None:
    """Measures, then prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=2000, help="frames a second")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = Plan(options.rate * options.seconds, options.streams, SAMPLES, stored=True)
    with redis_server() as url:
        delays = {
            "bare": measure(bare, plan, options.rate),
            "broker": measure(broker, plan._replace(state=url), options.rate),
        }
    rows = {name: [float(value) for value in np.percentile(ms, PERCENTILES)] for name, ms in delays.items()}
    rows["added"] = [ours - floor for floor, ours in zip(rows["bare"], rows["broker"], strict=True)]
    if options.json:
        print(json.dumps({"rate": options.rate, "seconds": options.seconds, "percentiles": PERCENTILES, **rows}))
        return
    print(f"{options.rate} frames a second for {options.seconds} s, {options.streams} requests; milliseconds")
    print(f"{'':<8}" + "".join(f"{f'p{percentile:g}':>9}" for percentile in PERCENTILES))
    for name, values in rows.items():
        print(f"{name:<8}" + "".join(f"{value:>9.2f}" for value in values))


if __name__ == "__main__":
    main()
