"""Mutated messages and handshakes at every socket of a running broker, while real requests are served.

Messages: valid ones of every type are mutated (see `mutations`) and sent to the sockets for clients, workers and
results, in turn; now and then a connection sends garbage instead of ZeroMQ's handshake. Handshakes: with a broker that
takes only allowed keys, connections come with wrong keys, with the right key at the wrong socket, and with handshakes
that are changed on their way or left half-way (see `handshakes`). Meanwhile a client asks for speech, again and again,
and compares it with what it heard before.

    python -m benchmarks.fuzz [--messages N] [--handshakes N] [--seed N] [--json]

Exits with 1 if the broker ends, lets in who does not belong, or keeps out who does, if its memory or descriptors grow,
or if one real request fails or sounds different.
"""

from __future__ import annotations

import argparse
import json
import socket as posix
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import zmq

from benchmarks.handshakes import Crowd, Door, Relay
from benchmarks.mutations import Frames, Mutator
from lighttts.client import Client
from lighttts.errors import LightTTSError
from lighttts.transport import wire
from tests.chaos.guarded import GuardedStack
from tests.system.stack import Stack

SOCKETS: dict[str, tuple[int, wire.Message | None]] = {
    "clients": (zmq.DEALER, wire.ListVoices(2**62)),
    "workers": (zmq.DEALER, wire.Heartbeat(2**62, 0, 0, 0)),
    "results": (zmq.PUSH, None),
}
"""What connects to each socket, and a message that is always answered, by `Voices` or by `Alive`."""
ROLES = {"clients": "client", "workers": "worker", "results": "worker"}
ROUND = 1000
"""Messages of one connection."""
GARBAGE = 5
"""Connections after each round that never become ZeroMQ's."""
WARM_UP = 0.1
"""Share of the work after which memory is first looked at: buffers and allocator arenas have their size by then."""
MOST_GROWTH_MB = 24.0
MOST_NEW_DESCRIPTORS = 16
LET_GO_S = 20.0
"""Seconds that the broker has to close connections that have ended, or never came to anything."""
TIMEOUT_MS = 30_000
TEXT = "One two three."
SEEDS = 4


@dataclass
class Figures:
    """What one run found; memory in MB. `connections`: those that sent garbage, or were handshakes.

    `admitted`: handshakes with the right key that the broker took, `intruders`: with a wrong one, `kept_out`: with the
    right key and not meddled with, which it did not take.
    """

    messages: int = 0
    connections: int = 0
    answers: int = 0
    admitted: int = 0
    intruders: int = 0
    kept_out: int = 0
    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    memory_before_mb: float = 0.0
    memory_after_mb: float = 0.0
    descriptors_before: int = 0
    descriptors_after: int = 0
    broker_lives: bool = False

    @property
    def problems(self) -> list[str]:
        """Sentences about what should not be."""
        grown = self.memory_after_mb - self.memory_before_mb
        return [
            text
            for text, found in (
                ("the broker has ended", not self.broker_lives),
                (f"the broker's memory has grown by {grown:.1f} MB", grown > MOST_GROWTH_MB),
                ("descriptors are left", self.descriptors_after - self.descriptors_before > MOST_NEW_DESCRIPTORS),
                (f"{self.intruders} connections were let in with a wrong key", self.intruders > 0),
                (f"{self.kept_out} connections with the right key were not let in", self.kept_out > 0),
                (f"{self.failed} of {self.requests} real requests failed", self.failed > 0),
                ("no real request was served", self.requests == 0),
            )
            if found
        ]


class Traffic(threading.Thread):
    """A client that asks for the same few things over and over until `stop`."""

    def __init__(self, endpoint: str, keys: Path | None, figures: Figures) -> None:
        super().__init__()
        self._endpoint, self._keys, self._figures = endpoint, keys, figures
        self._stopped = threading.Event()
        self.notes: list[str] = []

    def run(self) -> None:
        """Counts requests, and those that fail or differ from the first of their seed."""
        heard: dict[int, bytes] = {}
        with Client(self._endpoint, keys=self._keys, timeout=30) as client:
            while not self._stopped.is_set():
                seed = self._figures.requests % SEEDS
                self._figures.requests += 1
                try:
                    audio = np.asarray(client.synthesize(TEXT, seed=seed).audio()).tobytes()
                except LightTTSError as error:
                    self._failed(f"{error.code}: {error.text}")
                    continue
                if heard.setdefault(seed, audio) != audio:
                    self._failed(f"seed {seed} sounds different")

    def _failed(self, why: str) -> None:
        self._figures.failed += 1
        self.notes.append(why)

    def stop(self) -> None:
        """Ends it after its current request."""
        self._stopped.set()
        self.join()


class Siege:
    """What a run does around its attacks on the broker of `stack`: real requests, and looks at the broker."""

    def __init__(self, stack: Stack, keys: Path | None = None) -> None:
        self.figures = Figures()
        self._broker = stack.processes["broker"]
        self._traffic = Traffic(stack.endpoint, keys, self.figures)

    @property
    def notes(self) -> list[str]:
        """What failed of real requests."""
        return self._traffic.notes

    @property
    def stands(self) -> bool:
        """Whether the broker lives."""
        return self._broker.poll() is None

    def lay(self, attack: Callable[[int], None], count: int) -> None:
        """Has `attack` do `count` things, some of them before the broker is first looked at."""
        figures, warm_up = self.figures, round(count * WARM_UP)
        began = time.monotonic()
        with self._served():
            attack(warm_up)
            figures.memory_before_mb, figures.descriptors_before = _footprint(self._broker.pid)
            attack(count - warm_up)
        figures.seconds = time.monotonic() - began
        figures.broker_lives = self.stands
        give_up = time.monotonic() + LET_GO_S
        while self.stands:
            figures.memory_after_mb, figures.descriptors_after = _footprint(self._broker.pid)
            if figures.descriptors_after <= figures.descriptors_before or time.monotonic() > give_up:
                break
            time.sleep(0.1)

    @contextmanager
    def _served(self) -> Iterator[None]:
        self._traffic.start()
        try:
            yield
        finally:
            self._traffic.stop()


# ---- messages --------------------------------------------------------------------------------------------------------


def fuzz_messages(stack: Stack, count: int, seed: int) -> tuple[Figures, list[str]]:
    """Sends `count` mutated messages to each socket of the stack's broker; returns figures, and what failed."""
    siege, mutator, ends = Siege(stack), Mutator(seed), list(SOCKETS)
    figures = siege.figures

    def attack(messages: int) -> None:
        until = figures.messages + messages
        while figures.messages < until and siege.stands:
            end = ends[figures.messages // ROUND % len(ends)]
            some = [mutator.message() for _ in range(min(ROUND, until - figures.messages))]
            figures.answers += _send(f"ipc://{stack.folder}/{end}", SOCKETS[end][0], some, SOCKETS[end][1])
            figures.messages += len(some)
            for _ in range(GARBAGE):
                _send_garbage(stack.folder / end, mutator.garbage())
                figures.connections += 1

    siege.lay(attack, count * len(SOCKETS))
    return figures, siege.notes


def _send(endpoint: str, kind: int, messages: list[Frames], farewell: wire.Message | None) -> int:
    """Sends messages by a connection of their own; returns how many answers came.

    `farewell` is sent last: its answer shows that the broker has read all before it.
    """
    answers = 0
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.SNDTIMEO, TIMEOUT_MS)
        socket.setsockopt(zmq.LINGER, TIMEOUT_MS)
        socket.connect(endpoint)
        for frames in messages:
            socket.send_multipart(frames)
            while farewell and socket.poll(0):
                socket.recv_multipart()
                answers += 1
        if farewell:
            socket.send_multipart(wire.encode(farewell))
            while socket.poll(TIMEOUT_MS):
                tag = socket.recv_multipart()[0][3]
                if tag in (wire.Voices.TAG, wire.Alive.TAG):
                    break
                answers += 1
            else:
                raise AssertionError(f"the broker does not answer at {endpoint}")
    return answers


def _send_garbage(path: Path, garbage: bytes) -> None:
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(garbage)


# ---- handshakes ------------------------------------------------------------------------------------------------------


def fuzz_handshakes(stack: GuardedStack, count: int, seed: int) -> tuple[Figures, list[str]]:
    """Tries `count` handshakes with the sockets of the stack's broker; returns figures, and what failed."""
    siege = Siege(stack, stack.client_keys)
    figures = siege.figures
    doors = [Door(stack.addresses[end], kind, ROLES[end]) for end, (kind, _) in SOCKETS.items()]
    crowd = Crowd(doors, stack.pairs, stack.broker_pair, Random(seed))
    with Relay() as relay:

        def attack(connections: int) -> None:
            drawn = [crowd.attempt() for _ in range(connections)]
            outcomes = relay.carry_out(attempt for attempt, _ in drawn)
            for (attempt, right), admitted in zip(drawn, outcomes, strict=True):
                figures.connections += 1
                figures.admitted += admitted and right
                figures.intruders += admitted and not right
                figures.kept_out += right and attempt.piece < 0 and not admitted

        siege.lay(attack, count)
    return figures, siege.notes


def _footprint(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kilobytes / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    """Starts stacks with the tiny model of the tests and fuzzes their brokers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="to each socket (default 1,000,000)")
    parser.add_argument("--handshakes", type=int, default=10_000, help="in all (default 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        messages = fuzz_messages(stack, options.messages, options.seed)
    with tempfile.TemporaryDirectory() as folder, GuardedStack(Path(folder)) as guarded:
        handshakes = fuzz_handshakes(guarded, options.handshakes, options.seed)
    parts = {"messages": messages, "handshakes": handshakes}
    if options.json:
        print(json.dumps({name: asdict(figures) for name, (figures, _) in parts.items()}))
    for name, (figures, notes) in parts.items():
        if not options.json:
            print(f"---- {name}")
            print("\n".join(f"{key:20} {value}" for key, value in asdict(figures).items()))
        for problem in [*figures.problems, *notes]:
            print(f"{name}: {problem}", file=sys.stderr)
    return 1 if any(figures.problems for figures, _ in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
