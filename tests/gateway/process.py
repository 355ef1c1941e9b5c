"""A gateway as a real process on a free port, for tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.system.stack import ROOT

PATIENCE_S = 60.0
Line = dict[str, Any]


class Gateway:
    """Serves at `url`, and gRPC at `rpc` if settings say so, for the broker at `endpoint`.

    A context manager; `lines` are those of its log so far.
    """

    def __init__(self, endpoint: str, *settings: str) -> None:
        command = [sys.executable, "-m", "lighttts.gateway.main"]
        for setting in (f"connect.clients={endpoint}", "gateway.port=0", "log.format=json", *settings):
            command += ["--set", setting]
        self.lines: list[Line] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Gateway:
        started = self.wait_for(lambda line: line["event"] == "gateway started")
        self.url = f"http{'s' if started['tls'] else ''}://{started['host']}:{started['port']}"
        # It says so before, if it serves gRPC at all.
        self.rpc = next(
            (f"{line['host']}:{line['port']}" for line in self.lines if line["event"] == "grpc started"), ""
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
        self.wait()

    def wait_for(self, wanted: Callable[[Line], bool]) -> Line:
        """The first log line that is `wanted`, also one that has not been written yet."""

        def found() -> Line | None:
            return next((line for line in self.lines if wanted(line)), None)

        with self._more:
            line = self._more.wait_for(lambda: found() or self._process.poll() is not None, PATIENCE_S) and found()
        assert line, self.lines
        return line

    @property
    def resident_mb(self) -> float:
        """Its memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Waits until it has ended; returns its exit code."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join()
        assert self._process.stderr
        self._process.stderr.close()
        return code

    def _read(self) -> None:
        assert self._process.stderr
        for text in self._process.stderr:
            line = json.loads(text) if text.startswith("{") else {"event": text}
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        self._process.wait(PATIENCE_S)
        with self._more:
            self._more.notify_all()
