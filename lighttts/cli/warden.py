"""The process between a command and its daemons, so that nothing outlives the command.

``python -m lighttts.cli.warden`` reads its task as one JSON line from standard input, starts the daemons, and waits
for an order to stop, or for that input to end, which it does when the command closes it, crashes or is killed. Then it
ends the daemons, removes the private folder and leaves. If the warden itself is killed, the kernel ends the daemons
(see `lighttts.cli.child`).

Task:    {"private": bool, "grace": seconds, "commands": [{"name": str, "arguments": [str]}]}
Reports: {"folder": path} or {"failed": sentence}, first, if private;
         {"ended": name, "code": exit code or -signal, "words": its last line}
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypedDict

FOLDER = "{folder}"
"""Stands for the private folder in a command's arguments."""

STOP = b"s"
KILL = b"k"
"""Orders: end the daemons in the grace time, end them at once."""

_ROOM_FOR_NAMES = 24
_IPC_PATH_MAX = 107
_LAST_BYTES = 4096


class Command(TypedDict):
    """One daemon: the name it is reported under, and the arguments of `lighttts.cli.child`."""

    name: str
    arguments: list[str]


class Task(TypedDict):
    """What a warden does; see the module."""

    private: bool
    grace: float
    commands: list[Command]


class Warden:
    """Starts and ends the daemons of `task`."""

    def __init__(self, task: Task, reports: BinaryIO) -> None:
        self._task = task
        self._reports: BinaryIO | None = reports
        self._folder: Path | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts every daemon."""
        if self._task["private"]:
            try:
                self._folder = _private_folder()
            except OSError as error:
                self._report({"failed": f"cannot make a temporary folder: {error}; set TMPDIR to one with room"})
                return
            self._report({"folder": str(self._folder)})
        for command in self._task["commands"]:
            self._processes[command["name"]] = self._spawn(command)

    def watch(self, orders: int, child_signals: int) -> bytes:
        """Reports daemons that end, until an order comes, which it returns, or the input ends."""
        while True:
            ready, _, _ = select.select([orders, child_signals], [], [])
            if child_signals in ready:
                os.read(child_signals, 4096)
                self._reap()
            if orders in ready:
                return os.read(orders, 4096)

    def stop(self, order: bytes, orders: int, child_signals: int) -> None:
        """Asks the daemons to end, kills those left after the grace time or when so ordered, and tidies up."""
        grace = 0.0 if KILL in order else self._task["grace"]
        deadline = time.monotonic() + grace
        if grace:
            self._signal(signal.SIGTERM)
        listening = bool(order)
        while self._reap() and time.monotonic() < deadline:
            sources = [child_signals, orders] if listening else [child_signals]
            ready, _, _ = select.select(sources, [], [], max(0.0, deadline - time.monotonic()))
            if child_signals in ready:
                os.read(child_signals, 4096)
            if orders in ready:
                order = os.read(orders, 4096)
                listening = bool(order)
                if KILL in order:
                    break
        self._signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        if self._folder:
            shutil.rmtree(self._folder)

    def _spawn(self, command: Command) -> subprocess.Popen[bytes]:
        arguments = [argument.replace(FOLDER, str(self._folder)) for argument in command["arguments"]]
        line = [sys.executable, "-P", "-m", "lighttts.cli.child", str(os.getpid()), *arguments]
        if self._folder is None:
            return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        # Libraries leave files of their own where temporary files go: here they are removed with the rest.
        environment = {**os.environ, "TMPDIR": str(self._folder)}
        with self._log(command["name"]).open("wb") as log:
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def _reap(self) -> int:
        """Reports and forgets the daemons that have ended; returns how many have not."""
        for name, process in tuple(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[name]
                self._report({"ended": name, "code": code, "words": self._last_words(name)})
        return len(self._processes)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            process.send_signal(number)

    def _last_words(self, name: str) -> str:
        if self._folder is None:
            return ""
        with self._log(name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _log(self, name: str) -> Path:
        assert self._folder
        return self._folder / f"{name}.log"

    def _report(self, report: Mapping[str, object]) -> None:
        if self._reports is None:
            return
        try:
            self._reports.write(json.dumps(report).encode() + b"\n")
            self._reports.flush()
        except BrokenPipeError:
            # The command is gone; its input has ended too, and that is what stops the warden.
            self._reports = None


def _private_folder() -> Path:
    """A new folder that only its owner enters, with a path short enough for sockets in it."""
    usual = tempfile.gettempdir()
    short = len(os.fsencode(usual)) + _ROOM_FOR_NAMES + len("/lighttts-12345678") <= _IPC_PATH_MAX
    return Path(tempfile.mkdtemp(prefix="lighttts-", dir=usual if short else "/tmp"))


def main() -> int:
    """Serves one command."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Handlers, not SIG_IGN, which the daemons would inherit: only the command decides when to stop.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    with open(0, "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line.endswith(b"\n"):
        return 0
    warden = Warden(json.loads(line), sys.stdout.buffer)
    order = b""
    try:
        warden.start()
        order = warden.watch(0, reader)
    finally:
        warden.stop(order, 0, reader)
    return 0


if __name__ == "__main__":
    sys.exit(main())
