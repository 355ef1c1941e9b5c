"""A broker of real sockets that does what a test tells it, and a stage whose every step the test decides."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import zmq

from lighttts.errors import ConfigError
from lighttts.transport import wire
from lighttts.transport.security import Domain, Guard, Proof
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Delivery, Sockets
from lighttts.workers.base import Worker
from lighttts.workers.connector import Address
from lighttts.workers.stage import Boot, Result, Stage, Work

PATIENCE = 30.0
"""Seconds after which what a test waits for is taken to be missing."""
FOR_EVER_MS = 600_000
BOOT = Boot("llm", "scripted:0", 24_000)

OPEN: list[FakeBroker] = []
"""Brokers of the running test; closed after it, for a test that fails leaves its own open."""


ANYWHERE = Address("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")

M = TypeVar("M", bound=wire.Message)


def until(met: Callable[[], bool]) -> None:
    """Asks whether a condition is met until it is."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, "it never came to that"


class FakeBroker:
    """Answers heartbeats while `answers` is true and keeps everything else for the test to ask for, in order."""

    def __init__(self, address: Address = ANYWHERE, high_water_mark: int = 1000, guard: Guard | None = None) -> None:
        options = SocketOptions(linger_ms=0, high_water_mark=high_water_mark, heartbeat_timeout_ms=FOR_EVER_MS)
        self._sockets = Sockets(options, guard)
        self._closed = False
        OPEN.append(self)
        self._router = self._sockets.router(address.workers, Domain.WORKERS)
        self._pull = self._sockets.pull(address.results, Domain.RESULTS)
        self.address = Address(self._router.endpoint, self._pull.endpoint)
        self.peer = b""
        self.answers = True
        self.knows = True
        self.reading = True
        """Whether results are taken off the socket."""
        self.version = wire.VERSION
        """Of the protocol; a newer one is not understood, and results in an older one are wrong."""
        self.beats: deque[wire.Heartbeat] = deque()
        self._control: deque[wire.Message] = deque()
        self._frames: deque[wire.Message] = deque()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._sockets.close()

    def lose_results(self) -> None:
        """Breaks the connection for results alone; another can be made."""
        self._pull.close()

        def bound() -> bool:
            try:
                self._pull = self._sockets.pull(self.address.results, Domain.RESULTS)
            except ConfigError:
                return False
            return True

        until(bound)

    def send(self, message: wire.Message) -> None:
        assert self._router.send(self.peer, wire.encode(message, self.version)) is Delivery.SENT

    def send_raw(self, *frames: bytes) -> None:
        assert self._router.send(self.peer, frames) is Delivery.SENT

    def registered(self, heartbeat_ms: int = 20, expiry_ms: int = 60_000) -> wire.Register:
        """Takes a worker's registration and answers it."""
        hello = self.control(wire.Register)
        self.send(wire.Registered(hello.epoch, "fake", heartbeat_ms, expiry_ms))
        return hello

    def joined(self, heartbeat_ms: int = 20, expiry_ms: int = 60_000) -> wire.Grant:
        """Takes a worker's registration and its first credit."""
        self.registered(heartbeat_ms, expiry_ms)
        return self.control(wire.Grant)

    def control(self, kind: type[M]) -> M:
        """The next control message that is no heartbeat, which must be a `kind`."""
        return self._next(self._control, kind)

    def regains(self, credit: int) -> None:
        """Takes grants until they come to `credit`, which they must do exactly."""
        while credit > 0:
            credit -= self.control(wire.Grant).credit
        assert credit == 0

    def result(self, kind: type[M]) -> M:
        """The next result, which must be a `kind`."""
        return self._next(self._frames, kind)

    def beat(self) -> wire.Heartbeat:
        """The next heartbeat from now on."""
        self.beats.clear()
        return self._next(self.beats, wire.Heartbeat)

    def stream(self, request_id: str) -> list[wire.Tokens]:
        """All frames of a request up to its last; other requests' frames are kept."""
        frames: list[wire.Tokens] = []
        others: list[wire.Message] = []
        while not (frames and frames[-1].last):
            message = self._next(self._frames, wire.Message)
            (frames if isinstance(message, wire.Tokens) and message.request_id == request_id else others).append(
                message
            )
        self._frames.extendleft(reversed(others))
        return frames

    def quiet(self, beats: int = 3) -> None:
        """Goes on until `beats` heartbeats have come; nothing else may have."""
        for _ in range(beats):
            self.beat()
        assert not self._control
        assert not self._frames

    def _next(self, queue: deque[wire.Message], kind: type[M]) -> M:
        deadline = time.monotonic() + PATIENCE
        while not queue:
            assert time.monotonic() < deadline, f"no {kind.__name__} came; control {self._control}"
            self.pump()
        message = queue.popleft()
        assert isinstance(message, kind), f"{message} came instead of {kind.__name__}"
        return message

    def pump(self, timeout_ms: int = 100) -> None:
        """Takes in what has arrived, waiting for it at most `timeout_ms`."""
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        if self.reading:
            poller.register(self._pull.socket, zmq.POLLIN)
        ready = dict(poller.poll(timeout_ms))
        if self._router.socket in ready:
            for peer, frames in self._router.receive(1000):
                self.peer = peer
                self._take(frames)
        if self._pull.socket in ready:
            for _, frames in self._pull.receive(1000):
                assert wire.version_of(frames) == self.version
                self._frames.append(wire.decode(frames))

    def _take(self, frames: list[bytes]) -> None:
        if wire.version_of(frames) != self.version:
            self.send(wire.Error("", "protocol", "that protocol version is not supported", "", False, 0))
            return
        message = wire.decode(frames)
        if not isinstance(message, wire.Heartbeat):
            self._control.append(message)
            return
        self.beats.append(message)
        if self.answers:
            self.send(wire.Alive(message.epoch, self.knows))


class ScriptedStage(Stage):
    """Makes one `Tokens` frame a request and step, as many as the request's first length says.

    The seed of a request says what goes wrong with it: see the constants.
    """

    name = "llm"
    takes = wire.GenerateWork
    unit = "tokens"

    REFUSED = 1
    """`accept` raises a defect."""
    BREAKS_STEP = 2
    """The step after its acceptance raises, once."""
    UNSENDABLE = 3
    """Its frame does not fit the protocol."""
    BULKY = 4
    """Its frames are of 16 KiB."""

    def __init__(self, capacity: int = 4, epoch: int = BOOT.epoch) -> None:
        super().__init__(epoch, capacity)
        self.gate = threading.Event()
        """While clear, a step does not return."""
        self.gate.set()
        self.in_step = threading.Event()
        self.always_fails = False
        self.freed: list[Work] = []
        self.most = 0
        self._left: dict[Work, int] = {}
        self._seq: dict[Work, int] = {}
        self._fails: set[Work] = set()
        self._seeds: dict[Work, int] = {}

    @property
    def busy(self) -> bool:
        return bool(self._left)

    @property
    def waiting(self) -> int:
        return 0

    def accept(self, work: Work, message: wire.Message) -> None:
        assert isinstance(message, wire.GenerateWork)
        self._left[work] = message.lengths[0]
        self._seq[work] = 0
        self._seeds[work] = message.seed
        self.most = max(self.most, len(self._left))
        if message.seed == self.REFUSED:
            raise ArithmeticError("cannot take this one")
        if message.seed == self.BREAKS_STEP:
            self._fails.add(work)

    def abort(self, work: Work) -> None:
        if self._left.pop(work, None) is not None:
            self.freed.append(work)

    def step(self) -> list[Result]:
        self.in_step.set()
        assert self.gate.wait(PATIENCE)
        if self.always_fails or self._fails:
            self._fails.clear()
            raise FloatingPointError("step went wrong")
        return [self._advance(work) for work in tuple(self._left)]

    def _advance(self, work: Work) -> Result:
        self._left[work] -= 1
        self.made += 1
        seq, last = self._seq[work], self._left[work] == 0
        self._seq[work] += 1
        if last:
            del self._left[work]
        dtype = np.float64 if self._seeds[work] == self.UNSENDABLE else np.int32
        tokens = np.full(4096 if self._seeds[work] == self.BULKY else 1, seq, dtype)
        return Result(work, wire.Tokens(*work.named, self.epoch, seq, 0, last, last, tokens), last)


def work(request_id: str, frames: int = 1, *, seed: int = 0, attempt: int = 0) -> wire.GenerateWork:
    """A request for a `ScriptedStage`."""
    none = np.zeros(0, np.int32)
    return wire.GenerateWork(request_id, attempt, seed, 0, 0, (frames,), none, none, none, none)


class Running:
    """A worker in a thread of its own."""

    def __init__(self, stage: Stage, *brokers: Address, boot: Boot = BOOT, proof: Proof | None = None) -> None:
        self.worker = Worker(stage, boot, brokers, proof=proof)
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.exit_code = self.worker.run()

    def join(self) -> int | None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.exit_code


@contextmanager
def running(stage: Stage, *brokers: Address, boot: Boot = BOOT, proof: Proof | None = None) -> Iterator[Running]:
    """A worker that is stopped at the end, whatever the test left it doing."""
    worker = Running(stage, *brokers, boot=boot, proof=proof)
    try:
        yield worker
    finally:
        if isinstance(stage, ScriptedStage):
            stage.gate.set()
        worker.worker.stop()
        worker.worker.stop()
        worker.join()
