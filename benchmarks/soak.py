"""Steady load while workers and brokers are killed at random and started again: what fails, what grows.

A few clients ask for speech without a pause and compare each answer, sample by sample, with an undisturbed one of the
same text and seed. Every few seconds one worker of a random stage, or one of the two brokers, is killed (SIGKILL); the
script starts it again, as systemd would. Two workers a stage, state in a real Redis.

    python -m benchmarks.soak [--minutes N] [--streams N] [--kill-every S] [--json FILE]

Prints a table; exits with 1 if availability is below 99.9%, a sample was lost, or something has grown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import redis

from lighttts.client import Client
from lighttts.errors import LightTTSError
from tests.chaos.cluster import BROKERS, WORKERS, Cluster, until
from tests.system.stack import STAGES

TEXTS = (
    "The quick brown fox jumps over the lazy dog. " * 3,
    "One two three.",
    "How vexingly quick daft zebras jump! " * 2,
)
VICTIMS = (*WORKERS, *BROKERS)
SEEDS = 4
TTL_S = 30.0
"""Seconds that Redis keeps what nobody writes to: longer than any request here takes."""
NEEDED = 0.999
MOST_GROWTH_MB = 24.0
MOST_NEW_DESCRIPTORS = 16
KEYS = "lighttts:{*"
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Footprint:
    """What is held after so many minutes: megabytes and descriptors of the brokers (the larger one of each), megabytes
    of all workers, keys in Redis."""

    minute: float = 0.0
    broker_mb: float = 0.0
    broker_descriptors: int = 0
    workers_mb: float = 0.0
    redis_keys: int = 0


@dataclass
class Figures:
    """One soak. `lost`: answers that were not the undisturbed one; `errors`: typed ones, by code."""

    minutes: float
    requests: int = 0
    whole: int = 0
    lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    seconds_median: float = 0.0
    seconds_worst: float = 0.0
    start: Footprint = Footprint()
    end: Footprint = Footprint()
    footprints: list[Footprint] = field(default_factory=list)
    """Under load, one a minute."""

    @property
    def availability(self) -> float:
        """Share of requests that ended in their complete audio."""
        return self.whole / self.requests if self.requests else 0.0

    @property
    def problems(self) -> list[str]:
        """Sentences about what should not be."""
        return [
            text
            for text, found in (
                (f"availability is {self.availability:.4%}, not {NEEDED:.1%}", self.availability < NEEDED),
                (f"{self.lost} answers lost, repeated or changed samples", self.lost > 0),
                ("the broker's memory has grown", self.end.broker_mb - self.start.broker_mb > MOST_GROWTH_MB),
                (
                    "descriptors are left",
                    self.end.broker_descriptors - self.start.broker_descriptors > MOST_NEW_DESCRIPTORS,
                ),
                (
                    "the workers' memory has grown",
                    self.end.workers_mb - self.start.workers_mb > MOST_GROWTH_MB * len(WORKERS),
                ),
                ("keys are left in Redis", self.end.redis_keys > self.start.redis_keys),
            )
            if found
        ]


class Load:
    """Clients that ask on and on, each in a thread of its own."""

    def __init__(self, cluster: Cluster, streams: int, figures: Figures) -> None:
        self._figures = figures
        self._client = Client(cluster.endpoints, timeout=60)
        self._references = {(text, seed): self._speak(text, seed) for text in TEXTS for seed in range(SEEDS)}
        self._times: list[float] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(Random(number),)) for number in range(streams)]

    def _speak(self, text: str, seed: int) -> FloatArray:
        return np.asarray(self._client.synthesize(text, seed=seed).audio(), np.float32)

    def start(self) -> None:
        """Starts asking."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets the requests under way end."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        if self._times:
            self._figures.seconds_median = statistics.median(self._times)
            self._figures.seconds_worst = max(self._times)

    def _run(self, random: Random) -> None:
        while not self._stopped.is_set():
            asked = random.choice(list(self._references))
            began = time.monotonic()
            try:
                audio = self._speak(*asked)
            except LightTTSError as error:
                with self._lock:
                    self._figures.requests += 1
                    self._figures.errors[error.code] += 1
                continue
            same = np.array_equal(audio, self._references[asked])
            with self._lock:
                self._figures.requests += 1
                self._figures.whole += same
                self._figures.lost += not same
                self._times.append(time.monotonic() - began)


def soak(cluster: Cluster, minutes: float, streams: int, kill_every: float, seed: int) -> Figures:
    """Loads `cluster` for `minutes`, killing a worker or a broker every `kill_every` seconds on average."""
    figures, random = Figures(minutes), Random(seed)
    load = Load(cluster, streams, figures)
    cluster.settle()
    began = time.monotonic()
    figures.start = _footprint(cluster, 0.0)
    load.start()
    try:
        while (passed := time.monotonic() - began) < 60 * minutes:
            if passed >= 60 * len(figures.footprints):
                figures.footprints.append(_footprint(cluster, passed / 60))
                _tell(figures)
            left = 60 * minutes - passed
            time.sleep(min(left, random.uniform(0.5, 1.5) * kill_every))
            name = random.choice(VICTIMS)
            if left > 2 * kill_every and all(cluster.rested(stage) for stage in STAGES):
                figures.kills[name.partition(".")[0]] += 1
                cluster.replace(name)
    finally:
        load.stop()
    cluster.settle()
    # What a killed broker did not come to delete is deleted by Redis.
    with contextlib.suppress(AssertionError):
        until(lambda: _footprint(cluster, 0.0).redis_keys <= figures.start.redis_keys, "", 2 * TTL_S)
    figures.end = _footprint(cluster, (time.monotonic() - began) / 60)
    return figures


def _tell(figures: Figures) -> None:
    now, errors = figures.footprints[-1], sum(figures.errors.values())
    print(
        f"{now.minute:5.1f} min  {figures.requests} requests, {errors} errors, {figures.lost} lost; "
        f"brokers {now.broker_mb:.0f} MB, {now.broker_descriptors} descriptors; workers {now.workers_mb:.0f} MB; "
        f"{now.redis_keys} keys",
        flush=True,
    )


def _footprint(cluster: Cluster, minute: float) -> Footprint:
    brokers = [cluster.processes[name].pid for name in BROKERS]
    with redis.Redis(unix_socket_path=f"{cluster.folder}/redis.sock") as store:
        keys = sum(1 for _ in store.scan_iter(KEYS))
    return Footprint(
        minute=minute,
        broker_mb=max(map(_resident_mb, brokers)),
        broker_descriptors=max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in brokers),
        workers_mb=sum(_resident_mb(cluster.processes[name].pid) for name in WORKERS),
        redis_keys=keys,
    )


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def _table(figures: Figures) -> str:
    rows: list[tuple[str, object]] = [
        ("minutes", figures.minutes),
        ("killed", ", ".join(f"{count} {stage}" for stage, count in sorted(figures.kills.items()))),
        ("requests", figures.requests),
        ("complete, every sample equal", figures.whole),
        ("samples lost, repeated, changed", figures.lost),
        ("typed errors", ", ".join(f"{count} {code}" for code, count in figures.errors.items()) or 0),
        ("availability", f"{figures.availability:.4%}"),
        ("request, median / worst", f"{figures.seconds_median:.2f} / {figures.seconds_worst:.2f} s"),
    ]
    start, end = asdict(figures.start), asdict(figures.end)
    rows += [(f"{name}, start -> end", f"{start[name]:.0f} -> {end[name]:.0f}") for name in start]
    return "\n".join(f"{name:36} {value}" for name, value in rows)


def main() -> int:
    """Starts a stack with the tiny model of the tests and soaks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=4, help="requests at once (default 4)")
    parser.add_argument(
        "--kill-every", type=float, default=15.0, metavar="S", help="seconds between kills (default 15)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), settings=[f"broker.state_ttl_s={TTL_S}"]) as cluster,
    ):
        figures = soak(cluster, options.minutes, options.streams, options.kill_every, options.seed)
    print(_table(figures))
    if options.json:
        options.json.write_text(json.dumps({**asdict(figures), "availability": figures.availability}, indent=1))
    for problem in figures.problems:
        print(problem, file=sys.stderr)
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
