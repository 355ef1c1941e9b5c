"""What starting and stopping daemons costs: CPU seconds until all are ready, and seconds from SIGTERM to the exit.

The stack runs on the CPU with the tiny reference model, so that what is measured is the programs and not the weights.

    python -m benchmarks.worker_start [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.rig import cpu_s
from tests.system.stack import DAEMONS, Stack


class Figure(NamedTuple):
    start_cpu_s: float
    stop_s: float


def measured() -> dict[str, Figure]:
    """One start and stop of a stack, by daemon."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.start()
        try:
            stack.wait_for_workers()
            started = {name: cpu_s(stack.processes[name].pid) for name in DAEMONS}
            return {name: Figure(started[name], _stop(stack, name)) for name in reversed(DAEMONS)}
        finally:
            stack.stop()


def _stop(stack: Stack, name: str) -> float:
    begun = time.monotonic()
    stack.processes[name].terminate()
    assert stack.processes[name].wait() == 0
    return time.monotonic() - begun


def _median(figures: list[Figure]) -> Figure:
    return Figure(*map(statistics.median, zip(*figures, strict=True)))


def main() -> None:
    """Medians of some rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="stacks started (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    rounds = [measured() for _ in range(options.rounds)]
    figures = {name: _median([one[name] for one in rounds]) for name in DAEMONS}
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **{name: figure._asdict() for name, figure in figures.items()}}))
        return
    for name, figure in figures.items():
        print(f"{name:8} {figure.start_cpu_s:5.2f} s of CPU time until ready, {figure.stop_s:5.2f} s to stop")


if __name__ == "__main__":
    main()
