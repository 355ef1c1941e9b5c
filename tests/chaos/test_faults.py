"""Faults of a real stack under load: every request ends in its complete audio or in a typed error.

`python -m tests.chaos.matrix` runs all cells, here are a few.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.errors import LightTTSError, NoWorker, Unavailable
from tests.chaos.cluster import CLIENTS, Cluster
from tests.chaos.faults import FAULTS, MOMENTS, Cell, cells
from tests.chaos.matrix import Matrix
from tests.chaos.streams import STREAMS
from tests.system.stack import STAGES, Stack

TEXT = "The quick brown fox jumps over the lazy dog. " * 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("s"), settings=["broker.no_worker_s=1"]) as running:
        yield running


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """A whole stack: what the test before has ended is started again."""
    ended = [name for name, process in shared.processes.items() if process.poll() is not None]
    if ended:
        shared.start(*ended)
        shared.wait_for_workers()
    return shared


def _begin(client: Client, pool: ThreadPoolExecutor) -> list[Future[np.ndarray | LightTTSError]]:
    """Eight requests, each of which has delivered its first audio."""
    streams = [client.synthesize(TEXT, seed=seed) for seed in range(STREAMS)]
    firsts = [next(stream) for stream in streams]

    def finish(index: int) -> np.ndarray | LightTTSError:
        try:
            return np.concatenate([firsts[index], streams[index].audio()])
        except LightTTSError as error:
            return error

    return [pool.submit(finish, index) for index in range(STREAMS)]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """Two workers of each stage, for all cells: each cell mends what it broke."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield Matrix(cluster)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("killed", "llm", "mid-stream"),
        Cell("hangs in compute", "decode", "mid-stream"),
        Cell("stopped", "broker", "mid-stream"),
        Cell("link drops", CLIENTS, "mid-stream"),
    ],
    ids=str,
)
def test_eight_streams_do_not_notice_a_fault(matrix: Matrix, cell: Cell) -> None:
    outcome = matrix.run(cell)
    assert not outcome.lost
    assert outcome.whole == STREAMS


def test_every_fault_strikes_every_stage_and_every_cell_is_there_once() -> None:
    assert len(set(cells())) == len(cells())
    assert {cell.fault for cell in cells()} == set(FAULTS)
    assert {cell.component for cell in cells()} == {*STAGES, "broker", "redis", "client", CLIENTS, "all daemons"}
    assert {cell.moment for cell in cells() if cell.component == "llm"} == set(MOMENTS)


def test_streams_wait_for_the_only_worker_of_a_stage_to_be_started_again(tmp_path: Path) -> None:
    with (
        Stack(tmp_path, settings=["broker.no_worker_s=60"]) as stack,
        Client(stack.endpoint, timeout=60) as client,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        undisturbed = [result.result() for result in _begin(client, pool)]
        results = _begin(client, pool)
        stack.signal("decode", signal.SIGKILL)
        stack.start("decode")
        for result, reference in zip(results, undisturbed, strict=True):
            np.testing.assert_array_equal(result.result(), reference)


@pytest.mark.parametrize("stage", ["encode", "llm", "decode"])
def test_a_stage_without_workers_is_named(stack: Stack, stage: str) -> None:
    stack.signal(stage, signal.SIGKILL)
    stack.processes[stage].wait()
    with Client(stack.endpoint, timeout=30) as client, pytest.raises(NoWorker, match=stage):
        client.synthesize("Hello.", seed=1).audio()


@pytest.mark.parametrize("stage", ["llm", "decode"])
def test_a_draining_worker_finishes_what_it_has(stack: Stack, stage: str) -> None:
    with Client(stack.endpoint, timeout=60) as client, ThreadPoolExecutor(STREAMS) as pool:
        results = _begin(client, pool)
        stack.signal(stage, signal.SIGTERM)
        assert all(isinstance(result.result(), np.ndarray) for result in results)
        assert stack.processes[stage].wait(30) == 0


def test_a_killed_broker_is_reported_to_every_client(stack: Stack) -> None:
    with Client(stack.endpoint, timeout=30) as client, ThreadPoolExecutor(STREAMS) as pool:
        results = _begin(client, pool)
        stack.signal("broker", signal.SIGKILL)
        outcomes = [result.result() for result in results]
        assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert all(isinstance(outcome, np.ndarray | Unavailable) for outcome in outcomes)


def test_workers_survive_a_broker_restart(stack: Stack) -> None:
    stack.signal("broker", signal.SIGKILL)
    stack.processes["broker"].wait()
    stack.start("broker")
    stack.wait_for_workers()
    with Client(stack.endpoint, timeout=30) as client:
        assert len(client.synthesize("Hello.", seed=1).audio()) > 0


def test_a_client_that_vanishes_leaves_nothing_behind(stack: Stack) -> None:
    with Client(stack.endpoint, timeout=30) as watcher:
        with Client(stack.endpoint, timeout=30) as leaver:
            streams = [leaver.synthesize(TEXT, seed=seed) for seed in range(STREAMS)]
            firsts = [next(stream) for stream in streams]
            assert len(firsts) == STREAMS
        while watcher.status().active or any(row.active for row in watcher.status().workers):
            pass
        assert len(watcher.synthesize("Hello.", seed=1).audio()) > 0
