"""What tells an engine that works on a long step from one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lighttts.transport import wire
from lighttts.workers.compute import Accept, Compute
from lighttts.workers.stage import Result, Stage, Work

WORK = Work("r1", 0)
LOOKS = 40


class LongStage(Stage):
    """A stage of one step, `behave`, that ends when told."""

    name = "encode"
    takes = wire.EncodeWork
    unit = "requests"
    long_step = 3600.0

    def __init__(self, behave: Callable[[threading.Event], object]) -> None:
        super().__init__(1, 1)
        self._behave = behave
        self._busy = False
        self.inside, self.end = threading.Event(), threading.Event()

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def waiting(self) -> int:
        return 0

    def accept(self, work: Work, message: wire.Message) -> None:
        self._busy = True

    def abort(self, work: Work) -> None:
        self._busy = False

    def step(self) -> list[Result]:
        self.inside.set()
        self._behave(self.end)
        self._busy = False
        return []


class ShortStage(LongStage):
    """A stage whose steps are meant to be short."""

    long_step = 0.0


def compute_until(end: threading.Event) -> None:
    while not end.is_set():
        sum(range(1000))


def wait_until(end: threading.Event) -> None:
    end.wait()


@pytest.fixture
def inside(request: pytest.FixtureRequest) -> Iterator[Compute]:
    """The compute thread of a stage that is inside its step."""
    stage: LongStage = request.param()
    compute = Compute(stage, lambda: None)
    compute.start()
    compute.submit(Accept(WORK, wire.EncodeWork("r1", 0, "", "", "", b""), new=True))
    assert stage.inside.wait(20)
    yield compute
    stage.end.set()
    assert compute.stop(20)


@pytest.mark.parametrize("inside", [lambda: LongStage(compute_until)], indirect=True)
def test_a_long_step_that_computes_is_progress(inside: Compute) -> None:
    first = inside.progress()
    deadline = time.monotonic() + 20
    while inside.progress() == first:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("inside", [lambda: LongStage(wait_until), lambda: ShortStage(compute_until)], indirect=True)
def test_a_step_that_waits_is_none_and_a_step_that_should_be_short_is_none(inside: Compute) -> None:
    inside.progress()
    first = inside.progress()
    assert [inside.progress() for _ in range(LOOKS)] == [first] * LOOKS


def test_an_idle_engine_always_gets_on() -> None:
    compute = Compute(LongStage(wait_until), lambda: None)
    compute.start()
    assert compute.progress() != compute.progress()
    assert compute.stop(20)
