"""`lighttts-cli status`: what the broker and its workers are doing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lighttts.cli import options as common

if TYPE_CHECKING:
    from lighttts.transport.wire import Status

NAME = "status"
SUMMARY = "show what the broker and its workers are doing"
DESCRIPTION = "Shows the requests a running broker has, and its workers: free is how many more requests one would take."
EPILOG = """\
examples:
  lighttts-cli status
  lighttts-cli status --json --broker tcp://10.0.0.2:5570
"""

_HEADS = ("WORKER", "STAGE", "MODEL", "STATE", "ACTIVE", "FREE", "UP", "HEARD")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Prints the status; returns the exit code."""
    from lighttts.client import Client

    with Client(common.running_broker(options), keys=common.key_folder(options)) as client:
        status = client.status()
    print(json.dumps(_plain(status)) if options.json else describe(status))
    return 0


def describe(status: Status) -> str:
    """The status for people."""
    done = f"{status.completed} completed, {status.failed} failed"
    lines = [
        f"broker {status.broker}, up {_span(status.uptime_s)}, state in {status.store}",
        f"requests: {status.active} active, {status.queued} queued, {done}",
    ]
    if not status.workers:
        return "\n".join([*lines, "no workers: start lighttts-encode, lighttts-llm and lighttts-decode"])
    rows = [
        (w.worker, w.stage, w.model, w.state, str(w.active), str(w.credit), _span(w.age_s), f"{_span(w.seen_s)} ago")
        for w in status.workers
    ]
    return "\n".join([*lines, *table([_HEADS, *rows])])


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows as lines with columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(status: Status) -> dict[str, object]:
    workers = [worker._asdict() for worker in status.workers]
    return {**{field.name: getattr(status, field.name) for field in dataclasses.fields(status)}, "workers": workers}
