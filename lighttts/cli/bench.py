"""`lighttts-cli bench`: how many requests a running system serves, and how soon."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.cli import options as common
from lighttts.errors import InvalidInput

if TYPE_CHECKING:
    from lighttts.bench.drive import Task
    from lighttts.bench.load import Load
    from lighttts.bench.summary import Summary

NAME = "bench"
SUMMARY = "measure latency and throughput of a running system"
DESCRIPTION = """\
Puts a load on the broker and tells what its clients hear: first audio (from the moment a request was due), time between
chunks, underruns (silences of a listener who plays from the first chunk on), real-time factor, throughput, failures.

Open loop (--rate): requests begin at random times, so many a second on average, whatever becomes of those before.
Closed loop (--concurrency): so many requests at any time. Several loads, with commas, are run one after another.
"""
EPILOG = """\
examples:
  lighttts-cli bench --concurrency 1,4,16
  lighttts-cli bench --rate 5,10,20,40 --seconds 60 --plot latency.svg --json latency.json
  lighttts-cli bench --rate 10 --words 15
  lighttts-cli bench --rate 20 --prompt me.wav --prompt-text "What I say there." --metrics http://127.0.0.1:9570/metrics
"""
TEXT = "The rainbow is a division of white light into many beautiful colors."
_HEAD = f"{'load':<16}{'done':>6}{'failed':>7}{'first audio p50/p90/p95/p99 ms':>34}{'chunk p99 ms':>14}{'RTF p50':>9}"
_TAIL = f"{'dry':>5}{'requests/s':>12}{'audio s/s':>11}{'GPU':>6}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    load = parser.add_argument_group("the load").add_mutually_exclusive_group()
    load.add_argument("--rate", metavar="N,...", help="requests a second, at random times")
    load.add_argument("--concurrency", metavar="N,...", default="1", help="requests at any time (default: 1)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each load is measured (default: 30)")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds of load before that (default: 5)")
    parser.add_argument("--processes", type=int, default=1, help="processes that play clients (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times (default: 0)")
    what = parser.add_argument_group("what is asked for")
    what.add_argument("--text", default=TEXT, help="what to speak")
    what.add_argument("--voice", help="a preset voice (default: the broker's first)")
    what.add_argument("--prompt", metavar="FILE", type=Path, help="audio of the voice to speak with, instead")
    what.add_argument("--prompt-text", default="", help="what is said in the prompt")
    written = "words of the text that are written a second, as a language model does (default: it is whole at once)"
    what.add_argument("--words", type=float, default=0.0, metavar="N", help=written)
    told = parser.add_argument_group("what is told")
    told.add_argument("--metrics", metavar="URL", help="the broker's /metrics, for the time of each stage")
    told.add_argument("--json", metavar="FILE", type=Path, help="write all figures as JSON")
    told.add_argument("--plot", metavar="FILE", type=Path, help="write the curve of first audio against load as SVG")


def run(options: argparse.Namespace) -> int:
    """Runs the loads; returns the exit code: that of an unavailable service if nothing was served."""
    from lighttts.bench.plot import latency_curve

    loads, task = list(_loads(options)), _task(options)
    summaries: list[Summary] = []
    print(_HEAD + _TAIL)
    for load in loads:
        summary = _measure(options, task, load)
        summaries.append(summary)
        print(_row(summary), flush=True)
        if summary.failures:
            failures = ", ".join(f"{count} x {code}" for code, count in summary.failures.items())
            print(f"  failed: {failures}", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(summary) for summary in summaries], indent=1) + "\n")
        if options.plot:
            unit = "requests a second" if options.rate else "requests at once"
            options.plot.write_text(latency_curve(summaries, unit))
    return 0 if any(summary.requests_per_second for summary in summaries) else 69


def _measure(options: argparse.Namespace, task: Task, load: Load) -> Summary:
    from lighttts.bench.drive import drive
    from lighttts.bench.observe import GpuWatch, stage_means, stage_totals
    from lighttts.bench.summary import summarize

    print(f"{load.name}: {load.warmup:g} s of warm-up, {load.seconds:g} s measured", file=sys.stderr)
    before = stage_totals(options.metrics) if options.metrics else {}
    with GpuWatch() as gpu:
        records = drive(task, load, options.processes, options.seed)
    stages = stage_means(before, stage_totals(options.metrics)) if options.metrics else None
    return summarize(load, records, gpu.busy, stages)


def _loads(options: argparse.Namespace) -> Iterator[Load]:
    from lighttts.bench.load import Load

    if options.seconds <= 0 or options.warmup < 0 or options.processes < 1:
        raise InvalidInput("--seconds must be above 0, --warmup 0 or more, --processes 1 or more")
    for level in _levels(options.rate or options.concurrency, float if options.rate else int):
        rate, concurrency = (level, 0) if options.rate else (0.0, int(level))
        yield Load(options.seconds, options.warmup, rate, concurrency)


def _levels(text: str, kind: type[float] | type[int]) -> Iterator[float]:
    for part in text.split(","):
        try:
            level = kind(part)
        except ValueError:
            raise InvalidInput(f"{part!r} is no load: write numbers with commas between, such as 1,2,4") from None
        if not 0 < level < 1e6:
            raise InvalidInput(f"a load of {part} cannot be run: it must be above 0")
        yield level


def _task(options: argparse.Namespace) -> Task:
    from lighttts.bench.drive import Task

    if options.prompt and not options.prompt.is_file():
        raise InvalidInput(f"prompt {options.prompt} cannot be read: there is no such file")
    if not 0 <= options.words < 1e4:
        raise InvalidInput("--words must be 0, for a text that is whole at once, or more: people read 5 a second")
    keys = common.key_folder(options)
    return Task(
        common.running_brokers(options),
        options.text,
        str(keys) if keys else None,
        options.voice,
        str(options.prompt.resolve()) if options.prompt else None,
        options.prompt_text,
        options.words,
    )


def _row(summary: Summary) -> str:
    first = "/".join(f"{1000 * value:.0f}" for value in summary.first_audio.values()) or "-"
    chunk = f"{1000 * summary.chunk_interval['p99']:.0f}" if summary.chunk_interval else "-"
    factor = f"{summary.real_time_factor['p50']:.3f}" if summary.real_time_factor else "-"
    failed = sum(summary.failures.values())
    busy = "-" if summary.gpu_busy is None else f"{summary.gpu_busy:.0%}"
    return (
        f"{summary.load:<16}{summary.requests - failed:>6}{failed:>7}{first:>34}{chunk:>14}{factor:>9}"
        f"{summary.dry:>5}{summary.requests_per_second:>12.2f}{summary.audio_per_second:>11.1f}{busy:>6}"
    )
