"""Mutated messages: valid ones of every type (those of docs/protocol_vectors.json) with bits flipped, frames cut,
grown, dropped, repeated, swapped, mixed with those of another message, lengths and counts made huge, versions and tags
changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from lighttts.errors import ProtocolError
from lighttts.transport import wire
from tests.system.stack import ROOT

Frames = list[bytes]
VERSIONS = (0, 1, 2, 3, 255)
HUGE = (
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
)
"""msgpack's headers of an array, a blob, a text and a map of 2^32-1 entries, and the largest integer."""


# ---- each takes frames and returns others ----------------------------------------------------------------------------


def flipped(data: bytes, random: Random) -> bytes:
    """`data` with one to eight bits flipped."""
    changed = bytearray(data or b"\0")
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _flip(frames: Frames, random: Random, other: Frames) -> Frames:
    index = random.randrange(len(frames))
    return [*frames[:index], flipped(frames[index], random), *frames[index + 1 :]]


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
    return [b"LT" + bytes((random.choice(VERSIONS), random.randrange(256))), *frames[1:]]


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
