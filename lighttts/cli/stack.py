"""A stack: broker and workers as child processes of this command, private to it (`synth`) or for all (`up`)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lighttts.cli.warden import FOLDER, KILL, STOP, Command, Task
from lighttts.errors import BY_CODE, ConfigError, LightTTSError, ModelError, Unavailable, WorkerFailed
from lighttts.models.styles import read_styles

if TYPE_CHECKING:
    from lighttts.client import Client
    from lighttts.config import Config

STAGES = ("encode", "llm", "decode")
READY_TIMEOUT = 600.0
"""Seconds that a stack may take to load its model: large ones come from slow disks."""
POLL = 0.1
STOP_GRACE = 30.0
"""Seconds that daemons have to finish what they are doing."""

_MODULES = {"broker": "lighttts.broker.main", **{stage: f"lighttts.workers.{stage}" for stage in STAGES}}
_SOCKETS = ("clients", "workers", "results")


class Stack:
    """Runs `commands` under a warden. A context manager: nothing of the stack is left when it is closed.

    `private`: with a folder of its own for sockets and logs, and nobody else's business.
    """

    def __init__(self, commands: Sequence[Command], *, private: bool, grace: float = 0.0) -> None:
        task: Task = {"private": private, "grace": grace, "commands": [*commands]}
        self._warden = subprocess.Popen(
            [sys.executable, "-P", "-m", "lighttts.cli.warden"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._warden.stdin
        assert self._warden.stdout
        self._orders = self._warden.stdin
        self._reports = self._warden.stdout
        self._unread = b""
        self._ended: dict[str, tuple[int, str]] = {}
        self.folder: Path | None = None
        try:
            self._order(json.dumps(task).encode() + b"\n")
            while private and self.folder is None:
                self._read(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, wait: float | None = 0.0) -> None:
        """Raises what ended a daemon, if one has ended; waits up to `wait` seconds (None: for ever) for that."""
        self._read(wait)
        for name, (code, words) in self._ended.items():
            raise _failure(name, code, words)

    def wait_ready(self, client: Client, counts: Mapping[str, int]) -> None:
        """Waits until the broker has `counts` ready workers of each stage. Raises what ended a daemon, or
        `Unavailable`."""
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                ready = Counter(row.stage for row in client.status().workers if row.state == "ready")
                if all(ready[stage] >= count for stage, count in counts.items()):
                    return
            self.check(POLL)
        raise Unavailable(
            f"the workers were not ready after {READY_TIMEOUT:g} s: run `lighttts-cli up` to see their log"
        )

    def stop(self) -> None:
        """Asks the daemons to end, in the grace time."""
        self._order(STOP)

    def kill(self) -> None:
        """Ends the daemons at once."""
        self._order(KILL)

    def wait(self) -> None:
        """Waits until everything has ended."""
        self._warden.wait()

    def close(self) -> None:
        """Ends everything and waits for it. Idempotent."""
        self._orders.close()
        self._reports.close()
        self._warden.wait()
        if self.folder:
            # Only there still if the warden was killed.
            shutil.rmtree(self.folder, ignore_errors=True)

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(order)

    def _read(self, wait: float | None) -> None:
        if not select.select([self._reports], [], [], wait)[0]:
            return
        content = os.read(self._reports.fileno(), 65536)
        if not content:
            raise WorkerFailed("the process that watches over the daemons was killed: start again")
        *lines, self._unread = (self._unread + content).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "failed" in report:
                raise ConfigError(report["failed"])
            if "folder" in report:
                self.folder = Path(report["folder"])
            else:
                self._ended[report["ended"]] = (report["code"], report["words"])


def private_commands(
    arguments: Sequence[str], model: Path, style: str = "", stages: Sequence[str] = STAGES
) -> list[Command]:
    """Broker and one worker of each of `stages` on sockets in the private folder, without metrics, serving `model` in
    `style`, by default as configured."""
    settings = [f"broker.{socket}=ipc://{FOLDER}/{socket}" for socket in _SOCKETS]
    settings += ["broker.state=memory://", "security.keys=null", "security.ipc_mode=0600"]
    settings += [f"model.directory={json.dumps(str(model))}"]
    settings += [f"{name}.metrics_port=null" for name in _MODULES]
    settings += [f"llm.style={json.dumps(style)}"] if style else []
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return [{"name": name, "arguments": [_MODULES[name], *arguments, *flags]} for name in ("broker", *stages)]


def shared_commands(arguments: Sequence[str], config: Config, counts: Mapping[str, int], model: Path) -> list[Command]:
    """Broker and `counts` workers a stage, as configured; further workers serve metrics 10, 20, ... ports higher.

    The llm workers serve the styles of `model` in turn.
    """
    styles = styles_served(config, model)
    chosen = [*arguments, "--set", f"model.directory={json.dumps(str(model))}"]
    commands: list[Command] = [{"name": "broker", "arguments": [_MODULES["broker"], *chosen]}]
    for stage in STAGES:
        port: int | None = getattr(config, stage).metrics_port
        for number in range(counts[stage]):
            extra = ["--set", f"{stage}.metrics_port={port + 10 * number}"] if port and number else []
            if stage == "llm" and (style := styles[number % len(styles)]):
                extra += ["--set", f"llm.style={json.dumps(style)}"]
            name = f"{stage} {number + 1}" if counts[stage] > 1 else stage
            commands.append({"name": name, "arguments": [_MODULES[stage], *chosen, *extra]})
    return commands


def styles_served(config: Config, model: Path) -> tuple[str, ...]:
    """The styles that a stack of `model` serves: the configured one, or else all. Raises `ModelError`."""
    return (config.llm.style,) if config.llm.style else tuple(read_styles(model))


def private_endpoint(stack: Stack) -> str:
    """Where clients connect to a private stack."""
    return f"ipc://{stack.folder}/clients"


def model_directory(config: Config, chosen: Path | None) -> Path:
    """The model directory as an absolute path: `chosen`, or as configured.

    Raises `ModelError` when there is none, at once rather than when the workers look for it.
    """
    place = (chosen or config.model.directory).absolute()
    if not place.is_dir():
        raise ModelError(f"there is no model directory {place}: name one with --model, or set model.directory")
    return place


def _failure(name: str, code: int, words: str) -> LightTTSError:
    said = words.partition(": ")[2] if words.startswith("lighttts-") else words
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    kind = next((cls for cls in BY_CODE.values() if cls.exit_code == code), WorkerFailed)
    return kind(f"{said} (lighttts-{name} {how})" if said else f"lighttts-{name} {how}")
