"""One fault each, against a real stack under load: every request ends in its complete audio or in a typed error."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.errors import LightTTSError, NoWorker, Unavailable, WorkerFailed
from tests.system.stack import Stack

STREAMS = 8
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, settings=["broker.no_worker_s=1"]) as running:
        yield running


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


@pytest.mark.parametrize("stage", ["llm", "decode"])
def test_a_killed_worker_ends_its_requests_with_a_retryable_error_and_a_new_one_takes_over(
    stack: Stack, stage: str
) -> None:
    with Client(stack.endpoint, timeout=30) as client, ThreadPoolExecutor(STREAMS) as pool:
        results = _begin(client, pool)
        stack.signal(stage, signal.SIGKILL)
        outcomes = [result.result() for result in results]
        assert any(isinstance(outcome, WorkerFailed) for outcome in outcomes)
        assert all(isinstance(o, np.ndarray) or (isinstance(o, WorkerFailed) and o.retryable) for o in outcomes)
        stack.start(stage)
        stack.wait_for_workers()
        assert len(client.synthesize("Again.", seed=1).audio()) > 0


@pytest.mark.parametrize("stage", ["encode", "llm", "decode"])
def test_a_stage_without_workers_is_named(stack: Stack, stage: str) -> None:
    stack.signal(stage, signal.SIGKILL)
    stack.processes[stage].wait()
    with Client(stack.endpoint, timeout=30) as client, pytest.raises((NoWorker, WorkerFailed), match=stage):
        client.synthesize("Hello.", seed=1).audio()


def test_a_stopped_worker_is_given_up(stack: Stack) -> None:
    with Client(stack.endpoint, timeout=30) as client, ThreadPoolExecutor(STREAMS) as pool:
        results = _begin(client, pool)
        stack.signal("llm", signal.SIGSTOP)
        outcomes = [result.result() for result in results]
        assert any(isinstance(outcome, WorkerFailed) for outcome in outcomes)
        stack.signal("llm", signal.SIGCONT)
        stack.wait_for_workers()
        assert len(client.synthesize("Again.", seed=1).audio()) > 0


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
