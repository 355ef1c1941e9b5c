"""A worker process to lose: python -m tests.pitfalls.victim WORKERS RESULTS NAME [FATE].

It makes one token a step. In the step after a line on stdin it meets its fate: "hangs", "holds the GIL" or "aborts".
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable

from lighttts import logs
from lighttts.config import BrokerConfig, Config, LogConfig
from lighttts.workers.service import Service, serve
from lighttts.workers.stage import Boot, Result
from tests.workers.fakes import ScriptedStage

LONG = 10_000
FATES: dict[str, Callable[[], object]] = {
    "hangs": lambda: time.sleep(LONG),
    "holds the GIL": lambda: ctypes.PyDLL(None).sleep(LONG),
    "aborts": os.abort,
}


class Doomed(ScriptedStage):
    """A stage with a last step."""

    def __init__(self, epoch: int, fate: str) -> None:
        super().__init__(epoch=epoch)
        self._fate = FATES[fate]
        self._told = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        if sys.stdin.readline():
            self._told.set()

    def step(self) -> list[Result]:
        if self._told.is_set():
            self._fate()
        return super().step()


def main(workers: str, results: str, name: str, fate: str = "hangs") -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    boot = Boot("llm", "scripted:0", 24_000, worker=name)
    logs.configure("llm", LogConfig(format="json"))
    config = Config(broker=BrokerConfig(workers=workers, results=results))
    return serve(Service(Doomed(boot.epoch, fate), boot, config, None))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
