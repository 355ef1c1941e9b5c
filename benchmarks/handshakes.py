"""Handshakes that should not be: with keys of strangers, with the right key at the wrong socket, and meddled with.

libzmq makes each handshake, towards a relay that passes it on to the broker piece by piece (ZMTP's greeting, CURVE's
HELLO and INITIATE, and what is said after them), changing one of them on its way: so also what comes late in
a handshake is sent to a broker that expects it. Some connections are left as they are in the middle of it.
"""

from __future__ import annotations

import contextlib
import select
import socket as posix
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import zmq

from benchmarks.mutations import flipped
from lighttts.transport.keyfiles import KeyPair

GREETING = (10, 1, 53)
"""Bytes of the parts of ZMTP's greeting, each of which is sent when the other side has sent the one before."""
LONG = 0x02
"""Flag of a ZMTP frame whose length has eight bytes."""
AT_ONCE = 100
"""Connections at once: the broker closes some only when their time for the handshake is up."""
CHUNK = 1 << 16
PATIENCE_S = 30.0
WELCOMED = b"\x05READY"


class Keys(NamedTuple):
    """What one who connects proves itself with, and the public key that it takes for the broker's; None: no CURVE."""

    own: KeyPair
    broker: bytes


@dataclass(frozen=True)
class Attempt:
    """Somebody connects to `address` with `keys`; piece number `piece` of what they send is changed by `meddle`."""

    address: tuple[str, int]
    kind: int
    keys: Keys | None
    piece: int = -1
    meddle: Callable[[bytes, Random], bytes] = lambda piece, random: piece
    half_open: bool = False
    """Nothing follows the changed piece, and the connection stays until the broker ends it."""
    seed: int = 0


def _noise(piece: bytes, random: Random) -> bytes:
    return random.randbytes(random.randint(1, 2 * len(piece)))


def _cut(piece: bytes, random: Random) -> bytes:
    return piece[: random.randrange(len(piece))]


def _twice(piece: bytes, random: Random) -> bytes:
    return piece * random.randint(2, 20)


def _grown(piece: bytes, random: Random) -> bytes:
    return piece + random.randbytes(random.randint(1, 5000))


def _huge(piece: bytes, random: Random) -> bytes:
    """The frame says that it has eight bytes of length, and is very long."""
    return bytes((piece[0] | LONG,)) + random.randbytes(8) + piece[2:]


def _renamed(piece: bytes, random: Random) -> bytes:
    """The command of another step of the handshake, if it has a name at all."""
    names = (b"\x05HELLO", b"\x07WELCOME", b"\x08INITIATE", b"\x05READY", b"\x05ERROR", b"\x07MESSAGE")
    return piece[:2] + random.choice(names) + piece[8:]


MEDDLES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flipped,
    flipped,
    _noise,
    _cut,
    _twice,
    _grown,
    _huge,
    _renamed,
)
WHOLE, ABANDONED = 0.3, 0.2
"""Shares of handshakes that are not meddled with, and, of the others, of those that are left half-way."""
PIECES = len(GREETING) + 3
"""The greeting's, HELLO, INITIATE, and the first message."""


class Relay:
    """Carries out attempts, many at once."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._context.term()

    def carry_out(self, attempts: Iterable[Attempt]) -> Iterator[bool]:
        """Makes each attempt, to the end of its connection; tells whether the broker let it in."""
        return self._pool.map(self._admitted, attempts)

    def _admitted(self, attempt: Attempt) -> bool:
        with (
            self._somebody(attempt) as near,
            posix.create_connection(attempt.address) as far,
            contextlib.suppress(ConnectionError),
        ):
            far.settimeout(PATIENCE_S)
            return WELCOMED in _passed_on(attempt, near, far)
        # The broker has hung up while something was still on its way, as it may.
        return False

    @contextmanager
    def _somebody(self, attempt: Attempt) -> Iterator[posix.socket]:
        """Who connects, and the connection by which it reaches this relay."""
        with posix.create_server(("127.0.0.1", 0)) as listener, self._context.socket(attempt.kind) as socket:
            socket.linger = 0
            socket.reconnect_ivl = -1
            if attempt.keys:
                socket.curve_serverkey = attempt.keys.broker
                socket.curve_publickey, socket.curve_secretkey = attempt.keys.own.public, attempt.keys.own.secret
            socket.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            socket.send(b"nonsense")
            near, _ = listener.accept()
            with near:
                yield near


def _passed_on(attempt: Attempt, near: posix.socket, far: posix.socket) -> bytes:
    """Passes on what both say until the broker hangs up, or has let somebody in; returns what the broker said."""
    pieces, heard, passed = _Pieces(), b"", 0
    while True:
        ready = _ready(near, far)
        if far in ready:
            answer = far.recv(CHUNK)
            heard += answer
            if not answer or (WELCOMED in heard and attempt.piece < PIECES - 1):
                return heard
            near.sendall(answer)
        if near in ready:
            said = near.recv(CHUNK)
            if not said:
                return heard + _last_words(far, end=True)
            for piece in pieces.of(said):
                if passed == attempt.piece:
                    far.sendall(attempt.meddle(piece, Random(attempt.seed)))
                    return heard + _last_words(far, end=not attempt.half_open)
                far.sendall(piece)
                passed += 1


def _ready(*sockets: posix.socket) -> list[posix.socket]:
    """Those that have said something; raises `AssertionError` if nobody does."""
    poll = select.poll()
    for socket in sockets:
        poll.register(socket, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(1000 * PATIENCE_S)}
    assert ready, "a handshake neither ends nor goes on"
    return [socket for socket in sockets if socket.fileno() in ready]


def _last_words(far: posix.socket, *, end: bool) -> bytes:
    """What the broker says until it hangs up: because this side has ended, or because nothing comes of it."""
    heard = b""
    if end:
        with contextlib.suppress(OSError):
            far.shutdown(posix.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while data := far.recv(CHUNK):
            heard += data
    return heard


class _Pieces:
    """Splits what one side says into ZMTP's greeting and frames."""

    def __init__(self) -> None:
        self._said = b""
        self._whole = 0

    def of(self, data: bytes) -> Iterator[bytes]:
        """The pieces that are whole now."""
        self._said += data
        while len(self._said) >= (size := self._size()):
            piece, self._said = self._said[:size], self._said[size:]
            self._whole += 1
            yield piece

    def _size(self) -> int:
        if self._whole < len(GREETING):
            return GREETING[self._whole]
        if len(self._said) < 9:
            return 2 + self._said[1] if len(self._said) > 1 and not self._said[0] & LONG else 9
        return 9 + int.from_bytes(self._said[1:9]) if self._said[0] & LONG else 2 + self._said[1]


# ---- who comes -------------------------------------------------------------------------------------------------------


class Door(NamedTuple):
    """A socket of the broker: what connects to it, and the role whose key opens it."""

    address: tuple[str, int]
    kind: int
    role: str


class Crowd:
    """Draws attempts. `keys`: of each role one that is allowed, and `stranger`; `broker`: the broker's public key."""

    def __init__(self, doors: list[Door], keys: dict[str, KeyPair], broker: KeyPair, random: Random) -> None:
        self._doors = doors
        self._keys = keys
        self._broker = broker
        self._random = random

    def attempt(self) -> tuple[Attempt, bool]:
        """One attempt, and whether it is made with the right keys."""
        random, door = self._random, self._random.choice(self._doors)
        right = Keys(self._keys[door.role], self._broker.public)
        wrong = [Keys(pair, self._broker.public) for role, pair in self._keys.items() if role != door.role]
        wrong += [Keys(self._broker, self._broker.public), Keys(right.own, self._keys["stranger"].public), None]
        keys = random.choice((right, random.choice(wrong)))
        whole = Attempt(door.address, door.kind, keys)
        if random.random() < WHOLE:
            return whole, keys == right
        # With other keys than the right ones nobody comes as far as the first message.
        piece = random.randrange(PIECES if keys == right else PIECES - 1)
        seed = random.getrandbits(32)
        half_open = random.random() < ABANDONED
        return replace(whole, piece=piece, meddle=random.choice(MEDDLES), half_open=half_open, seed=seed), keys == right
