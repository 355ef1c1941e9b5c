"""Real processes of a test, found by a mark in their environment, and waited for without polling."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0


class Scene:
    """Runs commands with a private TMPDIR and a mark, so that whatever they leave behind is seen."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.temporary = temporary
        self.work = folder / "work"
        self.work.mkdir()
        self.model = folder / "model"
        self.model.mkdir()
        self._mark = f"SCENE={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "LIGHTTTS_BROKER__CLIENTS": f"ipc://{folder}/nobody",
            name: value,
        }

    def cli(self, *arguments: str, daemons: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Starts lighttts-cli with the stand-in daemons."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cli.daemons.run_cli", *daemons, "--", *arguments],
            cwd=self.work,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self, part: str = "") -> dict[int, str]:
        """The command lines of living processes of this scene that contain `part`, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if part in line:
                        found[int(folder.name)] = line
            except OSError:
                continue
        return found

    def left_behind(self) -> list[str]:
        """Temporary files and unfinished output."""
        return sorted(str(path) for path in (*self.temporary.rglob("*"), *self.work.rglob("*")))


class Watch:
    """Processes that must end."""

    def __init__(self, pids: dict[int, str]) -> None:
        self._descriptors = {os.pidfd_open(pid): line for pid, line in pids.items()}

    def wait_for_all(self) -> None:
        """Returns when every process has ended; fails naming one that has not."""
        for descriptor, line in self._descriptors.items():
            assert select.select([descriptor], [], [], DEADLINE)[0], f"still running: {line}"
            os.close(descriptor)
