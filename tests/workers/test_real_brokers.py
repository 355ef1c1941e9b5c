"""The real workers at two real brokers, of which one is killed while both have work for them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from tests.system.stack import STAGES, Stack

TEXT = " ".join(["The quick brown fox jumps over the lazy dog."] * 2)
SEEDS = range(3)


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[tuple[Stack, Stack]]:
    """Two brokers, and in the first stack the workers of both, with fewer places than there are requests."""
    folders = [tmp_path / name for name in "ab"]
    lists = {kind: ",".join(f"ipc://{folder}/{kind}" for folder in folders) for kind in ("workers", "results")}
    settings = [f"connect.{kind}={endpoints}" for kind, endpoints in lists.items()]
    settings += ["encode.concurrency=2", "llm.slots=2", "decode.streams=2"]
    for folder in folders:
        folder.mkdir()
    first, second = Stack(folders[0], settings=settings), Stack(folders[1])
    try:
        second.start("broker")
        with first:
            second.wait_for_workers()
            yield first, second
    finally:
        second.stop()


def speak(client: Client, seed: int) -> np.ndarray:
    return client.synthesize(TEXT, seed=seed).audio()


def test_workers_serve_two_brokers_at_once_and_the_death_of_one_is_not_heard_at_the_other(
    stacks: tuple[Stack, Stack],
) -> None:
    first, second = stacks
    with Client(first.endpoint) as one, Client(second.endpoint) as other, ThreadPoolExecutor(2 * len(SEEDS)) as pool:
        expected = [speak(one, seed) for seed in SEEDS]
        both = [[pool.submit(speak, client, seed) for seed in SEEDS] for client in (one, other)]
        for futures in both:
            for future, audio in zip(futures, expected, strict=True):
                np.testing.assert_array_equal(future.result(), audio)
        begun = one.synthesize(TEXT, seed=9)
        next(iter(begun))
        going = [pool.submit(speak, other, seed) for seed in SEEDS]
        first.signal("broker", signal.SIGKILL)
        for future, audio in zip(going, expected, strict=True):
            np.testing.assert_array_equal(future.result(), audio)
        begun.close()
        first.processes["broker"].wait()
        first.start("broker")
        first.wait_for_workers()
    with Client(first.endpoint) as again:
        np.testing.assert_array_equal(speak(again, SEEDS[0]), expected[0])
    codes = {name: code for name, code in first.stop().items() if name in STAGES}
    assert codes == dict.fromkeys(STAGES, 0)
