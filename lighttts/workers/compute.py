"""The compute thread of a worker: runs the stage's engine, apart from the thread that owns the sockets.

Commands go in by a queue; results come out, already encoded, by another, of which the socket thread is told once until
it has fetched them. When the socket thread has too many results that a broker does not take, the engine is not stepped
until there is room again: nothing is dropped, and commands (an abort above all) are still obeyed meanwhile. The other
brokers' work waits too, but never long: a broker that takes nothing counts as silent, and loses its seat's work.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from lighttts.errors import ProtocolError
from lighttts.logs import get_logger
from lighttts.transport import wire
from lighttts.transport.schema import Buffer
from lighttts.workers.stage import Result, Stage, Work, failed, typed, worker_failed

BACKLOG_LIMIT = 256
"""Unsent results for one broker at which the engine pauses."""
MAX_STEP_FAILURES = 3
"""Failed engine steps in a row after which the engine counts as unusable."""
BUSY_CPU_S = 0.005
"""Processor time between two looks by which a thread counts as computing: one that waits uses less."""


@dataclass(frozen=True, slots=True)
class Accept:
    """New work, or more input of accepted work."""

    work: Work
    message: wire.Message
    new: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Free what `work` holds; answered by a parcel without frames, whether there was anything or not."""

    work: Work


@dataclass(frozen=True, slots=True)
class DropAll:
    """Free everything of one seat; what comes for it after belongs to `generation`."""

    seat: int
    generation: int


@dataclass(frozen=True, slots=True)
class Speak:
    """Encode results for `seat` in a protocol version; `VERSION` before."""

    seat: int
    version: int


@dataclass(frozen=True, slots=True)
class ForgetVoice:
    """Keep nothing of a voice that was removed."""

    message: wire.Forget


Command = Accept | Drop | DropAll | Speak | ForgetVoice


@dataclass(frozen=True, slots=True)
class Parcel:
    """An encoded result; `kind` names its message type (empty: none), `code` the error of a failure."""

    generation: int
    work: Work
    kind: str
    code: str
    frames: list[Buffer]
    ends: bool


def pack(result: Result, generation: int, version: int) -> Parcel:
    """`result` in a version of the protocol. Raises `ProtocolError` when its message does not fit the limits."""
    frames = wire.encode(result.message, version) if result.message else []
    kind = type(result.message).__name__.lower() if result.message else ""
    code = result.message.code if isinstance(result.message, wire.StageFailed) else ""
    return Parcel(generation, result.work, kind, code, frames, result.ends)


class Compute:
    """Runs `stage` in a thread, which calls `deliver` when there are results to `take` or the engine is `broken`."""

    def __init__(self, stage: Stage, deliver: Callable[[], None]) -> None:
        self._stage = stage
        self._deliver = deliver
        self._changed = threading.Condition()
        self._commands: deque[Command] = deque()
        self._parcels: list[Parcel] = []
        self._unsent: Counter[int] = Counter()
        self._stopping = False
        self._works: set[Work] = set()
        self._generations: Counter[int] = Counter()
        self._versions: dict[int, int] = {}
        self._step_failures = 0
        self._working_since: float | None = None
        self._turns = 0
        self._turns_seen = -1
        self._log = get_logger(stage=stage.name)
        self._moves = 0
        self._moved_at = 0.0
        self._cpu_s = 0.0
        self._clock: int | None = None
        """The thread's own, while it runs."""
        self.broken = False
        """The engine is unusable and the thread has ended."""
        stage.watch(self._moved_on)
        # A daemon thread: a hung engine must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    # ---- called by the socket thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ends the thread after its current step; False if that takes longer than `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, command: Command) -> None:
        """Hands in a command; commands are obeyed in order, between steps."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def take(self) -> list[Parcel]:
        """Everything that has come out since the last call, in order."""
        with self._changed:
            parcels, self._parcels = self._parcels, []
        return parcels

    def cleared(self, seat: int, backlog: int) -> None:
        """Tells how many taken parcels of `seat` are still unsent."""
        with self._changed:
            self._unsent[seat] = backlog + sum(parcel.work.seat == seat for parcel in self._parcels)
            self._changed.notify()

    def moved(self) -> bool:
        """Whether the thread is not stuck: it has finished a turn since the last call, or waits for work."""
        seen, self._turns_seen = self._turns_seen, self._turns
        return self._turns_seen != seen or self._working_since is None

    def progress(self) -> int:
        """A number that another call gives again only while the engine does not get on with what it has to do."""
        if self._working_since is None or self._computes():
            self._moves += 1
        return self._moves

    def _computes(self) -> bool:
        """Whether the engine is in a long step, which cannot tell how it gets on, and uses the processor."""
        clock = self._clock
        if clock is None or time.monotonic() - self._moved_at > self._stage.long_step:
            return False
        before = self._cpu_s
        try:
            self._cpu_s = time.clock_gettime(clock)
        except OSError:  # the thread has just ended
            return False
        return self._cpu_s - before > BUSY_CPU_S

    def generation(self, seat: int) -> int:
        """That of the last `DropAll` of `seat` which it has obeyed; 0 if there was none."""
        return self._generations[seat]

    def stuck_for(self) -> float:
        """Seconds the current turn of the engine has taken so far; 0 while it waits for work."""
        began = self._working_since
        return 0.0 if began is None else time.monotonic() - began

    # ---- the compute thread --------------------------------------------------------------------------------------

    def _moved_on(self) -> None:
        self._moves += 1
        self._moved_at = time.monotonic()

    def _run(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._stage.begin()
            while not self._stopping:
                for command in self._next():
                    self._obey(command)
                if self._has_room() and self._stage.busy:
                    self._step()
                self._turns += 1
        except Exception:
            self._log.exception("the engine cannot go on")
            self.broken = True
            self._deliver()
        finally:
            self._clock = None

    def _next(self) -> list[Command]:
        """All commands there are; waits while there are none and the engine has nothing to do or no room."""
        with self._changed:
            while not (self._commands or self._stopping or (self._has_room() and self._stage.busy)):
                self._working_since = None
                self._changed.wait()
            self._working_since = self._moved_at = time.monotonic()
            commands = list(self._commands)
            self._commands.clear()
        return commands

    def _has_room(self) -> bool:
        with self._changed:
            return all(unsent < BACKLOG_LIMIT for unsent in self._unsent.values())

    def _obey(self, command: Command) -> None:
        match command:
            case Accept(work, message, new):
                if new:
                    self._works.add(work)
                if work in self._works:
                    self._accept(work, message)
            case Drop(work):
                self._works.add(work)
                self._stage.abort(work)
                self._emit([Result(work, None, ends=True)])
            case DropAll(seat, generation):
                for work in [work for work in self._works if work.seat == seat]:
                    self._stage.abort(work)
                    self._works.discard(work)
                self._generations[seat] = generation
            case Speak(seat, version):
                self._versions[seat] = version
            case ForgetVoice(message):
                self._stage.forget(message)

    def _accept(self, work: Work, message: wire.Message) -> None:
        try:
            self._stage.accept(work, message)
        except Exception as error:
            self._stage.abort(work)
            self._emit([failed(work, self._stage.epoch, typed(error, self._stage.name, work))])

    def _step(self) -> None:
        try:
            results = self._stage.step()
            self._step_failures = 0
        except Exception as error:
            self._step_failures += 1
            if self._step_failures >= MAX_STEP_FAILURES:
                raise
            results = self._fail_all(error)
        self._moved_on()
        self._emit(results)

    def _fail_all(self, error: Exception) -> list[Result]:
        self._log.exception("engine step failed", requests=len(self._works))
        for work in self._works:
            self._stage.abort(work)
        return [failed(work, self._stage.epoch, worker_failed(error, self._stage.name)) for work in tuple(self._works)]

    def _emit(self, results: list[Result]) -> None:
        parcels = [self._packed(result) for result in results if result.work in self._works]
        if not parcels:
            return
        with self._changed:
            announce = not self._parcels
            self._parcels += parcels
            self._unsent.update(parcel.work.seat for parcel in parcels)
        if announce:
            self._deliver()

    def _packed(self, result: Result) -> Parcel:
        """`result` as a parcel; one that cannot be encoded is the end of its work, not of the worker."""
        try:
            seat = result.work.seat
            parcel = pack(result, self._generations[seat], self._versions.get(seat, wire.VERSION))
        except ProtocolError as error:
            self._stage.abort(result.work)
            return self._packed(failed(result.work, self._stage.epoch, worker_failed(error, self._stage.name)))
        if parcel.ends:
            self._works.discard(parcel.work)
        return parcel
