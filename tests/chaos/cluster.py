"""A stack to break: two brokers on one Redis, two workers a stage, and links that can fail: of the first worker of each
stage to the brokers, and of clients to the first broker."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from lighttts.client import Client
from lighttts.errors import LightTTSError
from lighttts.transport.wire import Status, WorkerStatus
from tests.chaos.link import Link
from tests.system.stack import ROOT, STAGES, STOP_TIMEOUT, TINY, Stack

BROKERS = ("broker", "broker.1")
WORKERS = tuple(f"{stage}{suffix}" for stage in STAGES for suffix in ("", ".1"))
DAEMONS = ("redis", *BROKERS, *WORKERS)
ENDS = ("clients", "workers", "results")
CLIENTS = "client link"
PACE = {"encode": 0.2, "llm": 0.02, "decode": 0.0}
"""Seconds longer that a step takes each stage: the tiny model would be done before its workers are caught at work."""
SETTLE_TIMEOUT = 60.0
POLL = 0.02


class Cluster(Stack):
    """Processes `redis`, `broker`, `broker.1`, and for each stage `llm`, which can be broken in every way, and `llm.1`.

    `endpoints`: where clients find the brokers; `endpoint`: the first of them.
    """

    def __init__(self, folder: Path, *, model: Path = TINY, settings: Sequence[str] = ()) -> None:
        settings = [*settings, f"broker.state=unix://{folder}/redis.sock", "broker.metrics_port=0", "log.format=json"]
        super().__init__(folder, model=model, settings=settings)
        self.endpoints = [self.endpoint, self._end("broker.1", "clients")]
        self._links = contextlib.ExitStack()
        self._stage_links: dict[str, list[Link]] = {}

    def _end(self, broker: str, end: str) -> str:
        return f"ipc://{self.folder}/{end}{broker.removeprefix('broker')}"

    def command(self, name: str) -> list[str]:
        """As for a plain stack, but victims are started so that they can fail, and reach the brokers by their links."""
        stage = name.partition(".")[0]
        if name == "redis":
            where = ["--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
            return ["redis-server", "--port", "0", "--save", "", *where]
        command = super().command(name)
        if name in BROKERS:
            settings = [f"broker.{end}={self._end(name, end)}" for end in ENDS]
        else:
            near = f"{stage}-" if name in STAGES else ""
            ends = {end: [self._end(broker, end) for broker in BROKERS] for end in ENDS[1:]}
            settings = [f"connect.{end}={','.join(ends[end])}" for end in ends]
            settings = [setting.replace(f"{self.folder}/", f"{self.folder}/{near}") for setting in settings]
            command[1:3] = ["-m", "tests.chaos.faulty_worker", stage, str(self._triggers(name)), str(PACE[stage])]
        return [*command, *(part for setting in settings for part in ("--set", setting))]

    def start(self, *names: str) -> None:
        """Starts the named processes (default: all), with no fault commanded."""
        for name in names or DAEMONS:
            self._triggers(name).mkdir(exist_ok=True)
            for trigger in self._triggers(name).iterdir():
                trigger.unlink()
            if name == "redis":
                (self.folder / "redis.sock").unlink(missing_ok=True)
            super().start(name)
            if name == "redis":
                until((self.folder / "redis.sock").exists, "redis-server does not listen")

    def _triggers(self, name: str) -> Path:
        return self.folder / f"{name}.faults"

    # ---- faults ----------------------------------------------------------------------------------------------------

    def break_engine(self, name: str, how: str) -> None:
        """The next step of the worker's engine hangs ("hang") or aborts the process ("abort")."""
        (self._triggers(name) / how).touch()

    def links(self, stage: str) -> list[Link]:
        """The connections of the first worker of `stage` to the brokers; or of clients to the first broker."""
        return self._stage_links[stage]

    @property
    def linked_endpoints(self) -> list[str]:
        """As `endpoints`, with the first one behind the clients' link."""
        return [f"ipc://{self.folder}/{CLIENTS.replace(' ', '-')}", self.endpoints[1]]

    def replace(self, name: str) -> None:
        """Ends a process, whatever state it is in, and starts it anew."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(STOP_TIMEOUT)
        self.start(name)

    # ---- views -----------------------------------------------------------------------------------------------------

    def row(self, status: Status, name: str) -> WorkerStatus | None:
        """What the broker says of a worker process; None if it does not know it."""
        ending = f"-{self.processes[name].pid}"
        return next((row for row in status.workers if row.worker.endswith(ending)), None)

    def settled(self, status: Status) -> bool:
        """Whether all workers that run are ready and nobody has anything to do."""
        rows = [self.row(status, name) for name in WORKERS]
        idle = all(row is not None and row.state == "ready" and not row.active for row in rows)
        return idle and len(status.workers) == len(rows) and not status.active and not status.queued

    def rested(self, stage: str) -> bool:
        """Whether all workers of `stage` are ready, at all brokers."""
        names = [name for name in WORKERS if name.partition(".")[0] == stage]
        return all(self._ready(endpoint, names) for endpoint in self.endpoints)

    def _ready(self, endpoint: str, names: list[str]) -> bool:
        try:
            with Client(endpoint, connect_timeout=1.0) as client:
                status = client.status()
        except LightTTSError:
            return False
        rows = [self.row(status, name) for name in names]
        return all(row is not None and row.state == "ready" for row in rows)

    def settle(self) -> None:
        """Waits until everything runs, nothing is left of what was before, and new requests are let in."""
        for endpoint in self.endpoints:
            until(lambda endpoint=endpoint: self._rests(endpoint), "the stack does not come to rest", SETTLE_TIMEOUT)  # type: ignore[misc]

    def _rests(self, endpoint: str) -> bool:
        try:
            with Client(endpoint, connect_timeout=1.0) as client:
                return self.settled(client.status()) and len(client.synthesize("One.", seed=0).audio()) > 0
        except LightTTSError:
            return False

    def refused(self) -> int:
        """Late frames of workers that no longer have the request, as the broker counts them."""
        return sum(self._refused(name) for name in BROKERS)

    def _refused(self, broker: str) -> int:
        ready = [json.loads(line) for line in self.log(broker).splitlines() if '"event": "ready"' in line]
        port = ready[-1]["metrics_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        kinds = ('why="stale_epoch"', 'why="stale_attempt"', 'why="unknown"')
        refusals = [line for line in lines if line.startswith("light_tts_frames_refused_total{")]
        return sum(round(float(line.split()[-1])) for line in refusals if any(kind in line for kind in kinds))

    # ---- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        for stage in STAGES:
            far = [Path(self._end(broker, end).removeprefix("ipc://")) for broker in BROKERS for end in ENDS[1:]]
            self._link(stage, [(self.folder / f"{stage}-{path.name}", path) for path in far])
        self._link(CLIENTS, [(Path(self.linked_endpoints[0].removeprefix("ipc://")), self.folder / ENDS[0])])
        self.start()
        try:
            self.settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _link(self, name: str, ends: list[tuple[Path, Path]]) -> None:
        self._stage_links[name] = [self._links.enter_context(Link(near, far)) for near, far in ends]

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._links.close()


def until(condition: Callable[[], bool], otherwise: str, seconds: float = 30.0) -> None:
    """Waits for `condition`; raises `AssertionError` with `otherwise` when it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(POLL)


def speaker(cluster: Cluster, text: str, seed: int) -> subprocess.Popen[bytes]:
    """A client in a process of its own, so that it can be killed; its 16-bit samples come on its standard output."""
    command = [sys.executable, "-m", "lighttts.cli.main", "synth", text, "--seed", str(seed), "--quiet"]
    end = ["--broker", cluster.endpoint, "--format", "pcm", "-o", "-"]
    with (cluster.folder / "speaker.log").open("ab") as log:
        return subprocess.Popen([*command, *end], stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
