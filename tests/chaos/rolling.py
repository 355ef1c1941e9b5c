"""A rolling restart: every daemon is told to end and started again, one after another, under a steady load."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from lighttts.client import Client
from lighttts.errors import LightTTSError
from tests.chaos.cluster import BROKERS, STAGES, WORKERS, Cluster, until
from tests.chaos.streams import TEXT, FloatArray, difference
from tests.system.stack import STOP_TIMEOUT

AT_ONCE = 4


class SteadyLoad:
    """Clients that ask without a pause, and compare what they hear with `references`, by seed.

    `spoken`: requests that have ended; `whole`: those of them that were complete and equal; `lost`: what became of the
    first other one.
    """

    def __init__(self, endpoints: Sequence[str], references: Sequence[FloatArray], timeout: float) -> None:
        self._endpoints, self._references, self._timeout = endpoints, references, timeout
        self.spoken = self.whole = 0
        self.lost = ""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(AT_ONCE)]

    def _run(self, seed: int) -> None:
        with Client(self._endpoints, timeout=self._timeout) as client:
            while not self._stopped.is_set():
                seed = (seed + AT_ONCE) % len(self._references)
                try:
                    audio = np.asarray(client.synthesize(TEXT, seed=seed).audio(), np.float32)
                    what = difference(audio, self._references[seed])
                except LightTTSError as error:
                    what = f"{error.code}: {error.text}"
                with self._lock:
                    self.spoken += 1
                    self.whole += not what
                    self.lost = self.lost or (what and f"stream {self.spoken}: {what}")

    def __enter__(self) -> SteadyLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def restart_all(cluster: Cluster) -> None:
    """Restarts brokers, then workers, each once the one before serves again."""
    for name in (*BROKERS, *WORKERS):
        cluster.signal(name, signal.SIGTERM)
        cluster.processes[name].wait(2 * STOP_TIMEOUT)
        cluster.start(name)
        for stage in STAGES:
            until(lambda stage=stage: cluster.rested(stage), f"{name} does not serve again", STOP_TIMEOUT)  # type: ignore[misc]
