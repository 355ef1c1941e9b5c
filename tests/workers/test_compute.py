"""The compute thread: what is made and not sent yet holds the engine up, wherever it waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lighttts.workers.compute import BACKLOG_LIMIT, Accept, Compute, DropAll
from lighttts.workers.stage import Work
from tests.workers.fakes import PATIENCE, ScriptedStage, until, work

ENDLESS = 1_000_000
NOBODY = 7
"""A seat without work."""


class Bench:
    """A compute thread; `turned` returns when it has been through another turn."""

    def __init__(self, stage: ScriptedStage) -> None:
        self.compute = Compute(stage, lambda: None)
        self.compute.start()
        self._turns = 0

    def turned(self) -> None:
        for _ in range(2):
            self._turns += 1
            self.compute.submit(DropAll(NOBODY, self._turns))
            until(lambda: self.compute.generation(NOBODY) == self._turns)


@pytest.fixture
def bench(stage: ScriptedStage) -> Iterator[Bench]:
    bench = Bench(stage)
    yield bench
    assert bench.compute.stop(PATIENCE)


def test_the_engine_pauses_at_the_limit_whether_results_were_taken_or_not(bench: Bench, stage: ScriptedStage) -> None:
    for seat in (0, 1):
        bench.compute.submit(Accept(Work("a", 0, seat), work("a", ENDLESS), new=True))

    def goes_on_to(made: int) -> None:
        while stage.made < made:
            bench.turned()
        bench.turned()
        assert stage.made == made

    goes_on_to(2 * BACKLOG_LIMIT)
    for seat in (0, 1):
        bench.compute.cleared(seat, 0)
    goes_on_to(2 * BACKLOG_LIMIT)
    assert len(bench.compute.take()) == 2 * BACKLOG_LIMIT
    goes_on_to(2 * BACKLOG_LIMIT)
    bench.compute.cleared(0, 0)
    goes_on_to(2 * BACKLOG_LIMIT)
    bench.compute.cleared(1, BACKLOG_LIMIT - 10)
    goes_on_to(2 * BACKLOG_LIMIT + 20)
