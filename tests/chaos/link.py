"""A network link that can fail: forwards the byte streams of a unix socket to another, until it is told not to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

CHUNK = 1 << 16


class Link:
    """Listens on `near` and connects each connection to `far`.

    `drop`: connections close. `stall`: they stay, nothing gets through either way (a partition, a frozen switch).
    `cut`: connections close, new ones are turned away. `mend` ends both, and what a stall held back goes on its way.
    """

    def __init__(self, near: Path, far: Path) -> None:
        self._near, self._far = near, far
        self._flows = asyncio.Event()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"link {near.name}", daemon=True)

    def __enter__(self) -> Link:
        self._thread.start()
        self._flows.set()
        listening = asyncio.start_unix_server(self._serve, self._near)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self) -> None:
        """Nothing gets through from now on."""
        self._do(self._flows.clear)

    def cut(self) -> None:
        """Ends all connections and turns away new ones."""
        self._do(self._cut)

    def drop(self) -> None:
        """Ends all connections."""
        self._do(self._drop)

    def mend(self) -> None:
        """All is well again."""
        self._do(self._mend)

    def _do(self, what: Callable[[], None]) -> None:
        async def call() -> None:
            what()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _cut(self) -> None:
        self._refuses = True
        self._drop()

    def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._refuses = False
        self._flows.set()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close in a turn of the loop that comes after they are told to.
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self._refuses:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._far)
        self._writers.add(far_writer)
        try:
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
        finally:
            far_writer.transport.abort()
            self._writers.discard(far_writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
