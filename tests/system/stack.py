"""A whole LightTTS stack of real processes on ipc endpoints in a folder of its own, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from lighttts.client import Client
from lighttts.errors import LightTTSError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/golden/cosyvoice2-tiny"
STAGES = ("encode", "llm", "decode")
DAEMONS = ("broker", *STAGES)
MODULES = {"broker": "lighttts.broker.main", **{name: f"lighttts.workers.{name}" for name in (*STAGES, "gpu")}}
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
POLL_S = 0.1


class Stack:
    """Broker and workers; `processes` by name ("broker", "llm", or "llm.1" for a second one)."""

    def __init__(self, folder: Path, *, model: Path = TINY, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.endpoint = f"ipc://{folder}/clients"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._settings = [
            f"broker.clients={self.endpoint}",
            f"broker.workers=ipc://{folder}/workers",
            f"broker.results=ipc://{folder}/results",
            f"model.directory={model}",
            "model.device=cpu",
            "broker.heartbeat_s=0.2",
            "broker.expiry_s=2",
            *(f"{section}.metrics_port=null" for section in DAEMONS),
            *settings,
        ]

    def start(self, *names: str) -> None:
        """Starts the named processes (default: one of each); does not wait for them."""
        for name in names or DAEMONS:
            if name in self.processes:
                self.processes[name].wait(STOP_TIMEOUT)
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(self.command(name), stdout=log, stderr=log, cwd=ROOT)

    def command(self, name: str) -> list[str]:
        """What starts the process of that name."""
        command = [sys.executable, "-m", MODULES[name.partition(".")[0]]]
        for setting in self._settings:
            command += ["--set", setting]
        return command

    def wait_for_workers(self, stages: Iterable[str] = STAGES) -> None:
        """Returns when at least these stages have registered; fails with the logs when they do not."""
        wanted = sorted(stages)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._registered(wanted):
                return
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
            # What starts needs the processor more than who asks.
            time.sleep(POLL_S)
        raise AssertionError("\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes))

    def _registered(self, wanted: list[str]) -> bool:
        try:
            with Client(self.endpoint, connect_timeout=1.0) as client:
                rows = [row.stage for row in client.status().workers if row.state == "ready"]
        except LightTTSError:
            return False
        return all(rows.count(stage) >= wanted.count(stage) for stage in wanted)

    def log(self, name: str) -> str:
        """What the process has written so far."""
        return (self.folder / f"{name}.log").read_text()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        self.processes[name].send_signal(number)

    def stop(self) -> dict[str, int]:
        """Ends everything in order, workers first; returns the exit codes."""
        codes = {}
        for name in sorted(self.processes, key=lambda name: name == "broker"):
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                codes[name] = process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes

    def __enter__(self) -> Stack:
        self.start()
        try:
            self.wait_for_workers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
