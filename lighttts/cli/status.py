"""`lighttts-cli status`: what the broker and its workers are doing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.cli import options as common
from lighttts.cli.ask import ask_status
from lighttts.errors import LightTTSError

if TYPE_CHECKING:
    from lighttts.transport.wire import Status

NAME = "status"
SUMMARY = "show what the broker and its workers are doing"
DESCRIPTION = """\
Shows the requests a running broker has, and its workers: free is how many more requests one would take. Of several
brokers each is asked; exit code 69 tells that one does not answer.
"""
EPILOG = """\
examples:
  lighttts-cli status
  lighttts-cli status --json --broker tcp://10.0.0.2:5570
  lighttts-cli status --broker tcp://10.0.0.2:5570,tcp://10.0.0.3:5570
"""

_HEADS = ("WORKER", "STAGE", "MODEL", "STATE", "ACTIVE", "FREE", "UP", "HEARD")
_NO_WORKERS = "no workers: start lighttts-encode, lighttts-llm and lighttts-decode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Prints the status of each broker; returns the exit code."""
    addresses, keys = common.broker_addresses(options), common.key_folder(options)
    if len(addresses) == 1:
        status = ask_status(addresses[0], keys)
        print(json.dumps(_plain(status)) if options.json else describe(status))
        return 0
    answers = {address: _answer(address, keys) for address in addresses}
    if options.json:
        print(json.dumps({"brokers": [{"address": address, **_plain(answer)} for address, answer in answers.items()]}))
    else:
        print(describe_all(answers))
    return max(answer.exit_code if isinstance(answer, LightTTSError) else 0 for answer in answers.values())


def _answer(address: str, keys: Path | None) -> Status | LightTTSError:
    try:
        return ask_status(address, keys)
    except LightTTSError as error:
        return error


def describe(status: Status) -> str:
    """The status of the one broker for people."""
    lines = [
        f"broker {status.broker}, up {_span(status.uptime_s)}, state in {status.store}",
        f"requests: {_load(status)}",
    ]
    workers = [*table([_HEADS, *_rows(status)])] if status.workers else [_NO_WORKERS]
    return "\n".join([*lines, *workers])


def describe_all(answers: Mapping[str, Status | LightTTSError]) -> str:
    """The status of several brokers by address: a line for each, then the workers as each of them sees them."""
    lines, rows = [], []
    for address, answer in answers.items():
        if isinstance(answer, LightTTSError):
            lines.append(f"{address}: {answer.text}")
            continue
        since = f"up {_span(answer.uptime_s)}, state in {answer.store}"
        lines.append(f"{address}: broker {answer.broker}, {since}, requests: {_load(answer)}")
        rows += [(address, *row) for row in _rows(answer)]
    return "\n".join([*lines, *(table([("BROKER", *_HEADS), *rows]) if rows else [_NO_WORKERS])])


def _load(status: Status) -> str:
    return f"{status.active} active, {status.queued} queued, {status.completed} completed, {status.failed} failed"


def _rows(status: Status) -> list[tuple[str, ...]]:
    return [
        (w.worker, w.stage, w.model, w.state, str(w.active), str(w.credit), _span(w.age_s), f"{_span(w.seen_s)} ago")
        for w in status.workers
    ]


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows as lines with columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(status: Status | LightTTSError) -> dict[str, object]:
    if isinstance(status, LightTTSError):
        return {"error": status.code, "text": status.text}
    workers = [worker._asdict() for worker in status.workers]
    return {**{field.name: getattr(status, field.name) for field in dataclasses.fields(status)}, "workers": workers}
