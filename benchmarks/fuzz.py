"""Mutated messages at every socket of a running broker, while real requests are served.

Valid messages of every type (those of docs/protocol_vectors.json) are mutated - bits flipped, frames cut, grown,
dropped, repeated, swapped, mixed with those of another message, lengths and counts made huge, versions and tags
changed - and sent to the sockets for clients, workers and results, in turn. Now and then a connection sends garbage
instead of ZeroMQ's handshake. Meanwhile a client asks for speech, again and again, and compares it with what it heard
before.

    python -m benchmarks.fuzz [--count N] [--seed N] [--json]

Exits with 1 if the broker ends, its memory or descriptors grow, or one real request fails or sounds different.
"""

from __future__ import annotations

import argparse
import json
import socket as posix
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import zmq

from lighttts.client import Client
from lighttts.errors import LightTTSError, ProtocolError
from lighttts.transport import wire
from tests.system.stack import ROOT, Stack

SOCKETS: dict[str, tuple[int, wire.Message | None]] = {
    "clients": (zmq.DEALER, wire.ListVoices(2**62)),
    "workers": (zmq.DEALER, wire.Heartbeat(2**62, 0, 0, 0)),
    "results": (zmq.PUSH, None),
}
"""What connects to each socket, and a message that is always answered, by `Voices` or by `Alive`."""
ROUND = 1000
"""Messages of one connection."""
HANDSHAKES = 5
"""Connections after each round that never become ZeroMQ's."""
WARM_UP = 0.1
"""Share of the messages after which memory is first looked at: buffers and allocator arenas have their size by then."""
MOST_GROWTH_MB = 24.0
MOST_NEW_DESCRIPTORS = 16
TIMEOUT_MS = 30_000
TEXT = "One two three."
SEEDS = 4

Frames = list[bytes]
HUGE = (
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
)
"""msgpack's headers of an array, a blob, a text and a map of 2^32-1 entries, and the largest integer."""


# ---- mutations: each takes frames and returns others -----------------------------------------------------------------


def _flip(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    data = bytearray(frames[index] or b"\0")
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return [*frames[:index], bytes(data), *frames[index + 1 :]]


def _cut(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    return [*frames[:index], frames[index][: random.randint(0, len(frames[index]))], *frames[index + 1 :]]


def _grow(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    return [*frames[:index], frames[index] + random.randbytes(random.randint(1, 64)), *frames[index + 1 :]]


def _drop(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    return [*frames[:index], *frames[index + 1 :]] or [b""]


def _repeat(frames: Frames, random: Random, other: Frames) -> Frames:
    return frames + [random.choice(frames)] * random.randint(1, 20)


def _swap(frames: Frames, random: Random, other: Frames) -> Frames:
    return random.sample(frames, len(frames))


def _mix(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    return [*frames[:index], random.choice(other), *frames[index + 1 :]]


def _huge(frames: Frames, random: Random, other: Frames) -> Frames:
    body = frames[1]
    at = random.randrange(len(body))
    return [frames[0], body[:at] + random.choice(HUGE) + body[at + random.randint(0, 5) :], *frames[2:]]


def _nest(frames: Frames, random: Random, other: Frames) -> Frames:
    return [frames[0], b"\x91" * random.randint(1, 5000) + b"\x90", *frames[2:]]


def _head(frames: Frames, random: Random, other: Frames) -> Frames:
    return [b"LT" + bytes((random.choice((0, 2, 255, wire.VERSION)), random.randrange(256))), *frames[1:]]


def _noise(frames: Frames, random: Random, other: Frames) -> Frames:
    return [random.randbytes(random.randint(0, 200)) for _ in range(random.randint(1, 10))]


MUTATIONS: tuple[Callable[[Frames, Random, Frames], Frames], ...] = (
    _flip,
    _flip,
    _cut,
    _grow,
    _drop,
    _repeat,
    _swap,
    _mix,
    _huge,
    _nest,
    _head,
    _noise,
)


class Mutator:
    """Draws mutated messages. One that would be obeyed, as new work or a new worker, is drawn again: it is no fault."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        vectors = json.loads((ROOT / "docs/protocol_vectors.json").read_text())
        self._messages = [[bytes.fromhex(frame) for frame in vector["frames"]] for vector in vectors["messages"]]

    def message(self) -> Frames:
        """One mutated message."""
        random = self._random
        while True:
            frames, other = random.choice(self._messages), random.choice(self._messages)
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                if len(frames) > 1 and frames[1]:
                    frames = random.choice(MUTATIONS)(frames, random, other)
            if not _obeyed(frames):
                return frames

    def garbage(self) -> bytes:
        """What is not ZeroMQ's greeting, or only begins like it."""
        greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\0NULL" + b"\0" * 48
        start = greeting[: self._random.randint(0, len(greeting))]
        return start + self._random.randbytes(self._random.randint(1, 300))


def _obeyed(frames: Frames) -> bool:
    if frames[0][3:] not in (bytes((wire.Synth.TAG,)), bytes((wire.Register.TAG,))):
        return False
    try:
        wire.decode(frames)
    except ProtocolError:
        return False
    return True


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What one run found; memory in MB, `handshakes`: connections that sent garbage."""

    messages: int = 0
    handshakes: int = 0
    answers: int = 0
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
                (f"{self.failed} of {self.requests} real requests failed", self.failed > 0),
                ("no real request was served", self.requests == 0),
            )
            if found
        ]


class Traffic(threading.Thread):
    """A client that asks for the same few things over and over until `stop`."""

    def __init__(self, endpoint: str, figures: Figures) -> None:
        super().__init__()
        self._endpoint, self._figures = endpoint, figures
        self._stopped = threading.Event()
        self.notes: list[str] = []

    def run(self) -> None:
        """Counts requests, and those that fail or differ from the first of their seed."""
        heard: dict[int, bytes] = {}
        with Client(self._endpoint, timeout=30) as client:
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


def fuzz(stack: Stack, count: int, seed: int) -> tuple[Figures, list[str]]:
    """Sends `count` mutated messages to the stack's broker; returns the figures and what failed of real requests."""
    figures, mutator = Figures(), Mutator(seed)
    broker = stack.processes["broker"]
    traffic = Traffic(stack.endpoint, figures)
    traffic.start()
    began = time.monotonic()
    try:
        _send_all(stack, mutator, figures, round(count * WARM_UP))
        figures.memory_before_mb, figures.descriptors_before = _footprint(broker.pid)
        _send_all(stack, mutator, figures, count)
    finally:
        traffic.stop()
    figures.seconds = time.monotonic() - began
    figures.broker_lives = broker.poll() is None
    if figures.broker_lives:
        figures.memory_after_mb, figures.descriptors_after = _footprint(broker.pid)
    return figures, traffic.notes


def _send_all(stack: Stack, mutator: Mutator, figures: Figures, until: int) -> None:
    ends = list(SOCKETS)
    while figures.messages < until and stack.processes["broker"].poll() is None:
        end = ends[figures.messages // ROUND % len(ends)]
        size = min(ROUND, until - figures.messages)
        messages = [mutator.message() for _ in range(size)]
        figures.answers += _round(f"ipc://{stack.folder}/{end}", SOCKETS[end][0], messages, SOCKETS[end][1])
        figures.messages += size
        for _ in range(HANDSHAKES):
            _shake(stack.folder / end, mutator.garbage())
            figures.handshakes += 1


def _round(endpoint: str, kind: int, messages: list[Frames], farewell: wire.Message | None) -> int:
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


def _shake(path: Path, garbage: bytes) -> None:
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(garbage)


def _footprint(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kilobytes / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    """Starts a stack with the tiny model of the tests and fuzzes its broker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutated messages in all (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        figures, notes = fuzz(stack, options.count, options.seed)
    if options.json:
        print(json.dumps(asdict(figures)))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in asdict(figures).items()))
    for problem in [*figures.problems, *notes]:
        print(problem, file=sys.stderr)
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
