"""What the gateway adds to the first audio, and what idle WebSockets cost it. Speech costs nothing here.

    python -m benchmarks.gateway_load first [--streams 50] [--seconds 15] [--rounds 4]
    python -m benchmarks.gateway_load idle [--sockets 500] [--minutes 3]

`first`: so many users, who each have the next text spoken when the last has been heard (3 s, in frames of 250 ms that
come as they are played), so that there are always so many streams. All of them through the plain client and through the
gateway in turn: the overhead of a request is its first audio through the gateway, less the median of the plain client's
in the round beside it. `idle`: connections that have begun and say nothing, and the gateway's resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import connect

from benchmarks import scripted_broker
from benchmarks.scripted_broker import FRAME_S, FRAMES, VOICE
from lighttts.client import AsyncClient

TEXT = "The quick brown fox jumps over the lazy dog."
BODY = json.dumps({"model": "tts-1", "voice": VOICE, "input": TEXT, "response_format": "pcm"}).encode()
PERCENTILES = (50, 90, 99)
WANTED_MS = 10.0
AT_ONCE = 50
Ask = Callable[[], Awaitable[float]]
"""Has a text spoken; returns seconds until its first audio."""


class Gateway(NamedTuple):
    """A running gateway."""

    url: str
    pid: int

    @property
    def resident_mb(self) -> float:
        """Its memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def gateway_before(endpoint: str) -> Iterator[Gateway]:
    """A gateway as a process of its own."""
    settings = (f"connect.clients={endpoint}", "gateway.port=0", "log.format=json")
    words = [word for setting in settings for word in ("--set", setting)]
    with (
        open(os.devnull, "w") as nowhere,
        subprocess.Popen(
            [sys.executable, "-m", "lighttts.gateway.main", *words], stderr=subprocess.PIPE, stdout=nowhere, text=True
        ) as process,
    ):
        assert process.stderr
        try:
            started = json.loads(process.stderr.readline())
            # Its log goes on to be read, as a service manager would.
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield Gateway(f"http://127.0.0.1:{started['port']}", process.pid)
        finally:
            process.terminate()
        reader.wait()


@contextmanager
def broker() -> Iterator[str]:
    """The address of a scripted broker."""
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=scripted_broker.run, args=(end,), daemon=True)
    process.start()
    # So that a broker that does not come up is noticed.
    end.close()
    try:
        yield pipe.recv()
    finally:
        process.kill()


async def ask_client(client: AsyncClient) -> float:
    """Through the plain client."""
    began = time.perf_counter()
    first = 0.0
    async for _ in client.synthesize(TEXT, voice=VOICE, format="s16"):
        first = first or time.perf_counter() - began
    return first


class HttpUser:
    """Through the gateway, over a connection that is kept, with as little work on this side as can be."""

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> float:
        """Speaks; raises `RuntimeError` when it is refused."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        began = time.perf_counter()
        writer.write(self._head + BODY)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        first = 0.0
        while length := int(await reader.readline(), 16):
            await reader.readexactly(length + 2)
            first = first or time.perf_counter() - began
        await reader.readline()
        return first

    def close(self) -> None:
        """Leaves."""
        if self._streams:
            self._streams[1].close()


async def crowd(asks: list[Ask], seconds: float) -> list[float]:
    """Milliseconds to the first audio of all requests but each user's first; the users come one by one."""
    end = time.monotonic() + FRAMES * FRAME_S + seconds
    found: list[float] = []

    async def user(number: int, ask: Ask) -> None:
        await asyncio.sleep(number / len(asks) * FRAMES * FRAME_S)
        await ask()
        while time.monotonic() < end:
            found.append(1000 * await ask())

    await asyncio.gather(*(user(number, ask) for number, ask in enumerate(asks)))
    return found


async def first_audio(endpoint: str, gateway: Gateway, options: argparse.Namespace) -> None:
    """Measures round by round, and prints each: on a machine with other work the rounds differ."""
    rounds = []
    async with AsyncClient(endpoint) as client:
        for number in range(1, options.rounds + 1):
            plain = await crowd([lambda: ask_client(client)] * options.streams, options.seconds)
            users = [HttpUser(gateway.url) for _ in range(options.streams)]
            through = await crowd([user.ask for user in users], options.seconds)
            for user in users:
                user.close()
            rounds.append((plain, through, [each - float(np.median(plain)) for each in through]))
            show(f"round {number}, {len(through)} requests", rounds[-1:])
    show(f"{options.streams} streams, all rounds; overhead p99 wanted: at most {WANTED_MS:g} ms", rounds)


def show(title: str, rounds: list[tuple[list[float], list[float], list[float]]]) -> None:
    """Prints percentiles."""
    print(title)
    for name, rows in zip(("plain client", "gateway", "overhead"), zip(*rounds, strict=True), strict=True):
        times = np.percentile([each for row in rows for each in row], PERCENTILES)
        shown = ", ".join(f"p{percentile} {time:.2f} ms" for percentile, time in zip(PERCENTILES, times, strict=True))
        print(f"{name:>14}: {shown}", flush=True)


async def idle(gateway: Gateway, options: argparse.Namespace) -> None:
    print(f"before: {gateway.resident_mb:.1f} MB")
    for turn in (1, 2):
        async with AsyncExitStack() as stack:
            sockets = []
            for _ in range(options.sockets):
                url = f"{gateway.url.replace('http', 'ws')}/ws/speech"
                sockets.append(await stack.enter_async_context(connect(url, proxy=None, compression=None)))
                await sockets[-1].send(json.dumps({"voice": VOICE}))
            print(f"{options.sockets} connected, time {turn}: {gateway.resident_mb:.1f} MB", flush=True)
            for minute in range(1, options.minutes + 1):
                await asyncio.sleep(60)
                print(f"  after {minute} min: {gateway.resident_mb:.1f} MB", flush=True)
            # All are alive: each still speaks.
            for some in range(0, options.sockets, AT_ONCE):
                await asyncio.gather(*(speak(socket) for socket in sockets[some : some + AT_ONCE]))
            print(f"  after each has spoken: {gateway.resident_mb:.1f} MB", flush=True)
    await asyncio.sleep(1)
    print(f"all gone: {gateway.resident_mb:.1f} MB")


async def speak(socket: object) -> None:
    """Says a text over a WebSocket, and hears it. Raises when it is not spoken."""
    await socket.send(json.dumps({"text": TEXT, "end": True}))  # type: ignore[attr-defined]
    received = [said async for said in socket]  # type: ignore[attr-defined]
    assert sum(isinstance(said, bytes) for said in received) == FRAMES
    assert json.loads(received[-1])["type"] == "done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("first", "idle"))
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--minutes", type=int, default=3)
    options = parser.parse_args()
    with broker() as endpoint, gateway_before(endpoint) as gateway:
        asyncio.run(first_audio(endpoint, gateway, options) if options.what == "first" else idle(gateway, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
