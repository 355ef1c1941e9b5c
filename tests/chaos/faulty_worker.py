"""A real worker whose engine fails on command: `python -m tests.chaos.faulty_worker STAGE FOLDER PACE [--set ...]`.

Each engine step takes PACE seconds longer than it does by itself. Once there is a file `hang` in FOLDER, the next step
never returns (the thread that owns the sockets goes on); once there is a file `abort`, the next step ends the process
the way a failed assertion in native code does.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
from pathlib import Path

from lighttts.workers.stage import Result, Stage


def break_on_command(stage: type[Stage], folder: Path, pace: float) -> None:
    """Wraps the stage's step."""
    step = stage.step

    def faulty(self: Stage) -> list[Result]:
        while (folder / "hang").exists():
            time.sleep(1)
        if (folder / "abort").exists():
            os.abort()
        time.sleep(pace)
        return step(self)

    stage.step = faulty  # type: ignore[method-assign]


def main() -> None:
    """Runs the worker of the stage named first, with the rest of the command line as its own."""
    name, folder, pace = sys.argv[1:4]
    del sys.argv[1:4]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module = importlib.import_module(f"lighttts.workers.{name}")
    (stage,) = (cls for cls in Stage.__subclasses__() if cls.__module__ == module.__name__)
    break_on_command(stage, Path(folder), float(pace))
    module.main()


if __name__ == "__main__":
    main()
