"""What a stage's engine looks like to the rest of a worker, and who the worker is."""

from __future__ import annotations

import os
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import ClassVar, NamedTuple

from lighttts import __version__
from lighttts.errors import LightTTSError, WorkerFailed
from lighttts.logs import get_logger
from lighttts.transport import wire

_ERROR_TEXT = 2000
_ERROR_FIELD = 100


class Work(NamedTuple):
    """Names one attempt at one request: what a worker is given, aborts and answers.

    `seat` numbers the broker it comes from, among those the worker serves: two may have the same request.
    """

    request_id: str
    attempt: int
    seat: int = 0

    @property
    def named(self) -> tuple[str, int]:
        """As messages name it."""
        return self.request_id, self.attempt


@dataclass(frozen=True)
class Boot:
    """Who a worker is for the life of its process; `epoch` (63 random bits) tells this boot from any other."""

    stage: str
    model: str
    sample_rate: int
    voices: tuple[str, ...] = ()
    styles: tuple[str, ...] = ("",)
    worker: str = ""
    epoch: int = field(default_factory=lambda: secrets.randbits(63))

    def __post_init__(self) -> None:
        if not self.worker:
            object.__setattr__(self, "worker", f"{self.stage}@{socket.gethostname()[:64]}-{os.getpid()}")

    def register(self) -> wire.Register:
        """The message that introduces this worker."""
        software = f"lighttts {__version__}"
        return wire.Register(
            self.worker, self.epoch, self.stage, software, self.model, self.sample_rate, self.voices, self.styles
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A message of a stage for the broker. `ends`: it is the last one of `work`. No message: ended without a word."""

    work: Work
    message: wire.Message | None
    ends: bool


class Stage(ABC):
    """One stage's work, driven by the compute thread alone; plain attributes may be read by other threads.

    `accept` takes messages of a type of `takes` (new work) and `feeds` (more input of accepted work). Any exception it
    raises fails that work only. `step` advances everything there is and returns what came of it; it is called while
    `busy`, and an exception of it fails all work. `abort` frees everything that work holds; the work may be unknown.
    """

    name: ClassVar[str]
    takes: ClassVar[type[wire.Message] | UnionType]
    feeds: ClassVar[type[wire.Message] | None] = None
    long_step: ClassVar[float] = 0.0
    """Seconds for which a step may go on without a word as long as it uses the processor (a GPU's steps are short)."""
    unit: ClassVar[str]
    """What `made` counts, for people: "tokens", "s of audio"."""

    def __init__(self, epoch: int, capacity: int) -> None:
        """`epoch`: the boot's, for results. `capacity`: requests held at once."""
        self.epoch = epoch
        self.capacity = capacity
        self.made = 0.0

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Accepted requests that are not being worked on yet."""

    @abstractmethod
    def accept(self, work: Work, message: wire.Message) -> None:
        """Begins or continues `work`, which `message` is of."""

    @abstractmethod
    def abort(self, work: Work) -> None:
        """Frees everything that `work` holds."""

    @abstractmethod
    def step(self) -> list[Result]:
        """Advances all work by one engine step."""

    def forget(self, message: wire.Forget) -> None:  # noqa: B027 - a stage that keeps nothing of voices
        """Drops what is kept of a voice, as soon as no request needs it."""

    def begin(self) -> None:  # noqa: B027 - most stages need none
        """Called first by the thread that drives the stage."""

    def watch(self, moved: Callable[[], None]) -> None:  # noqa: B027 - a stage of short steps needs none
        """Has `moved` called every now and then within a long step: by then the engine is not stuck."""


def work_of(message: wire.Message, seat: int = 0) -> Work:
    """The work a dispatch, feed or abort message of the broker at `seat` names."""
    if not isinstance(message, wire.StageWork | wire.Tokens | wire.MoreText | wire.Abort):
        raise TypeError(f"{type(message).__name__} names no work")
    return Work(message.request_id, message.attempt, seat)


def failed(work: Work, epoch: int, error: LightTTSError) -> Result:
    """The end of `work` by `error`."""
    text = error.text.encode()[:_ERROR_TEXT].decode(errors="ignore")
    field_ = error.field.encode()[:_ERROR_FIELD].decode(errors="ignore")
    message = wire.StageFailed(*work.named, epoch, error.code, text, field_, error.retryable)
    return Result(work, message, ends=True)


def typed(error: Exception, stage: str, work: Work) -> LightTTSError:
    """What to report of an exception that ended `work`: a typed error as it is; a defect is logged, with traceback."""
    if isinstance(error, LightTTSError):
        return error
    log = get_logger(stage=stage, request_id=work.request_id, attempt=work.attempt)
    log.error("work failed", exc_info=error)
    return worker_failed(error, stage)


def worker_failed(error: Exception, stage: str) -> WorkerFailed:
    """The error for work that a defect has ended."""
    return WorkerFailed(f"the {stage} worker failed on this request ({type(error).__name__}); its log says why")
