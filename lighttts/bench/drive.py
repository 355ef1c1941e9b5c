"""Puts a load on a broker: asyncio clients in a few processes, so that the load is not what is measured.

Each process is `python -m lighttts.bench.drive`: it reads its share as JSON and writes its records as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass

from lighttts.bench.load import Load, poisson
from lighttts.bench.record import Record
from lighttts.client.aio import AsyncClient
from lighttts.errors import LightTTSError, Unavailable

START_S = 1.0
"""Seconds that each process has until all begin together."""
COLLECT_S = 60.0
"""Seconds that requests in flight have after the last one has begun, beside their timeout."""


@dataclass(frozen=True)
class Task:
    """What every request asks for, and where. `prompt`: a path. `timeout`: seconds without anything new. `words`: so
    many of the text are written a second while it is spoken; 0: it is whole from the beginning."""

    brokers: tuple[str, ...]
    text: str
    keys: str | None = None
    voice: str | None = None
    prompt: str | None = None
    prompt_text: str = ""
    words: float = 0.0
    timeout: float = 60.0


def drive(task: Task, load: Load, processes: int, seed: int) -> list[Record]:
    """Runs one load and returns its requests after the warm-up. Raises `Unavailable` if a process died."""
    start = time.monotonic() + START_S * (1 + processes)
    workers = []
    for number in range(processes):
        share = {
            "task": asdict(task),
            "load": asdict(load.part(processes, number)),
            "start": start,
            "seed": seed + number,
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdin
        json.dump(share, worker.stdin)
        worker.stdin.close()
        workers.append(worker)
    try:
        records = [record for worker in workers for record in _collected(worker)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [record for record in records if record.due >= start + load.warmup]


def _collected(worker: subprocess.Popen[str]) -> list[Record]:
    assert worker.stdout
    with worker.stdout as output:
        text = output.read()
    if worker.wait():
        raise Unavailable("a process of the benchmark has died: see what it wrote above")
    return [Record(**record) for record in json.loads(text)]


def main() -> None:
    """One process: its share from standard input, its records to standard output."""
    share = json.load(sys.stdin)
    task = Task(**{**share["task"], "brokers": tuple(share["task"]["brokers"])})
    records = asyncio.run(_run(task, Load(**share["load"]), share["start"], random.Random(share["seed"])))
    json.dump([asdict(record) for record in records], sys.stdout)


async def _run(task: Task, load: Load, start: float, chance: random.Random) -> list[Record]:
    records: list[Record] = []
    async with AsyncClient(task.brokers, keys=task.keys, timeout=task.timeout) as client:
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        if load.rate:
            await _open_loop(client, task, [start + at for at in poisson(load, chance)], records)
        else:
            await asyncio.gather(
                *(_closed_loop(client, task, start + load.length, records) for _ in range(load.concurrency))
            )
    return records


async def _open_loop(client: AsyncClient, task: Task, times: Sequence[float], records: list[Record]) -> None:
    under_way = set()
    for due in times:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        under_way.add(asyncio.create_task(_request(client, task, due, records)))
    if under_way:
        await asyncio.wait(under_way, timeout=task.timeout + COLLECT_S)


async def _closed_loop(client: AsyncClient, task: Task, until: float, records: list[Record]) -> None:
    while (now := time.monotonic()) < until:
        await _request(client, task, now, records)


async def _request(client: AsyncClient, task: Task, due: float, records: list[Record]) -> None:
    record = Record(due)
    records.append(record)
    try:
        text = _written(task.text, task.words) if task.words else task.text
        speech = client.synthesize(text, task.voice, prompt=task.prompt, prompt_text=task.prompt_text, format="s16")
        rate = await speech.sample_rate()
        async for chunk in speech:
            record.hear(time.monotonic(), len(chunk) / rate)
    except LightTTSError as error:
        record.error = error.code
    record.end = time.monotonic()


async def _written(text: str, words: float) -> AsyncIterator[str]:
    """The text word by word, `words` of them a second."""
    for number, word in enumerate(text.split()):
        if number:
            await asyncio.sleep(1 / words)
        yield f"{word} "


if __name__ == "__main__":
    main()
