"""Around a relay that is measured: the broker as a process of its own, and the part of the workers before audio is due.

A request is `request-<stream>`; its first tokens have number 0, those that are made while it is measured come after.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lighttts.broker.app import App
from lighttts.config import BrokerConfig, LogConfig
from lighttts.logs import configure
from lighttts.transport import wire
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.reactor import DRAIN_BUDGET
from lighttts.transport.security import Proof
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Sockets

ANY = "tcp://127.0.0.1:0"
UNBOUNDED = SocketOptions(high_water_mark=0)
EPOCHS = dict(zip(wire.STAGES, (1, 2, 3), strict=True))
TOKENS = 25


class Plan(NamedTuple):
    """What one run relays: `frames` frames for `streams` requests in turn, audio of `samples` 16-bit samples.

    `stored`: every other frame is one of tokens, which the broker stores and passes on to the decode worker. `keys` is
    the key folder, if there is one, `state` the broker's store.
    """

    frames: int
    streams: int
    samples: int
    stored: bool = False
    state: str = "memory://"
    keys: str = ""

    def proof(self, role: Role) -> Proof | None:
        """What to connect with."""
        return Proof(KeyFolder(Path(self.keys)), role) if self.keys else None

    @property
    def each(self) -> int:
        """Audio frames of one request."""
        return self.frames // self.streams // (2 if self.stored else 1)


def broker(pipe: Connection, plan: Plan) -> None:
    """The real broker: tells its endpoints, then runs until it is ended."""
    configure("broker", LogConfig(level="error", format="json"))
    limits = {"expiry_s": 600, "stall_s": 600, "metrics_port": None}
    settings = BrokerConfig(clients=ANY, workers=ANY, results=ANY, state=plan.state, **limits)  # type: ignore[arg-type]
    app = App(settings, keys=KeyFolder(Path(plan.keys)) if plan.keys else None)
    signal.signal(signal.SIGTERM, lambda *_: app.terminate())
    pipe.send(app.endpoints)
    app.run()
    app.close()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a Redis of its own, with nothing on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        words = ["redis-server", "--port", "0", "--unixsocket", path, "--dir", folder, "--save", ""]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "ready to accept connections" in line.lower():
                    break
            try:
                yield f"unix://{path}"
            finally:
                process.kill()


class Workers:
    """One worker of each stage, and the socket for their results."""

    def __init__(self, sockets: Sockets, results: str) -> None:
        self.push = sockets.push(results)
        self.links: dict[str, Link] = {}

    def serve(self, sockets: Sockets, plan: Plan, endpoint: str) -> None:
        """Brings all requests to where audio is due."""
        self.links = {stage: sockets.dealer(endpoint, stage.encode()) for stage in wire.STAGES}
        for stage, link in self.links.items():
            send(link, wire.Register(stage, EPOCHS[stage], stage, "", "", 24000, ("voice",)))
            send(link, wire.Grant(EPOCHS[stage], plan.streams))
        waiting = plan.streams
        while waiting:
            for stage, link in self.links.items():
                for _, frames in link.receive(DRAIN_BUDGET):
                    message = wire.decode(frames)
                    if isinstance(message, wire.EncodeWork | wire.GenerateWork):
                        send(self.push, _result(message, EPOCHS[stage], last=not plan.stored))
                    # A decode worker has all it needs when the first tokens are there.
                    waiting -= stage == "decode" and isinstance(message, wire.Tokens)
            time.sleep(0.001)

    def drain(self) -> list[list[bytes]]:
        """What has come for them."""
        return [frames for link in self.links.values() for _, frames in link.receive(DRAIN_BUDGET)]


def _result(work: wire.EncodeWork | wire.GenerateWork, epoch: int, *, last: bool) -> wire.Message:
    if isinstance(work, wire.GenerateWork):
        return wire.Tokens(work.request_id, 0, epoch, 0, 0, last, last, np.zeros(TOKENS, np.int32))
    ids, mel = np.zeros(1, np.int32), np.zeros((2, wire.MEL_BINS), np.float32)
    embedding = np.zeros(wire.EMBEDDING_SIZE, np.float32)
    return wire.Encoded(work.request_id, 0, epoch, (1,), "key", ids, ids, ids, ids, mel, embedding)


def audio(plan: Plan, stream: int, seq: int, samples: np.ndarray) -> wire.Audio:
    """Audio frame `seq` of a request."""
    last = seq == plan.each - 1
    return wire.Audio(f"request-{stream}", 0, EPOCHS["decode"], seq, 0, last, seq * plan.samples, seq, samples)


def tokens(plan: Plan, stream: int, seq: int, ids: np.ndarray) -> wire.Tokens:
    """The frame of tokens before audio frame `seq`."""
    last = seq == plan.each - 1
    return wire.Tokens(f"request-{stream}", 0, EPOCHS["llm"], seq + 1, 0, last, last, ids)


def request(stream: int, window: int) -> wire.Synth:
    """The request of that number, with credit for `window` frames."""
    return wire.Synth(f"request-{stream}", "Text.", "voice", "", 0, 1.0, "audio", "s16", 0, window, b"")


def send(link: Link, message: wire.Message) -> None:
    """Sends a message, waiting until the socket takes it."""
    frames = wire.encode(message)
    while not link.broadcast(frames):
        time.sleep(0.001)


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process so far, in seconds."""
    return sum(int(part.read_text().split()[0]) for part in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
