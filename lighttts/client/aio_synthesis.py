"""What the asyncio face gives to whoever asks for speech; everything `lighttts.client.synthesis` says holds here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING

from lighttts.client.events import Chunk, Event, Sent
from lighttts.client.holding import Holding
from lighttts.client.loop import ClientLoop
from lighttts.client.room import AsyncRoom
from lighttts.client.writer import Writer
from lighttts.transport.wire import SpeechRequest

if TYPE_CHECKING:
    from lighttts.client.aio import AsyncClient


class AsyncSynthesis(Holding):
    """Speech on its way: an asynchronous iterator of chunks; everything `Synthesis` says holds here."""

    def __init__(self, client: AsyncClient, loop: ClientLoop, asked: SpeechRequest, retries: int) -> None:
        self._mailbox = AsyncMailbox()
        super().__init__(client, loop, asked, self._mailbox, retries)

    async def sample_rate(self) -> int:
        """Samples a second; waits until the request is admitted. Raises what ended the request before."""
        self._receipt.check()
        while self._receipt.rate is None:
            self._receipt.take(await self._mailbox.get())
        return self._receipt.rate

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        self._receipt.check()
        while not self._receipt.over:
            chunk = self._receipt.take(await self._mailbox.get())
            if chunk is not None:
                self._loop.consumed(self.request_id)
                return chunk
        raise StopAsyncIteration

    async def audio(self) -> Chunk:
        """All chunks not taken yet, in one array: samples (n,), or mel frames or tokens if those were asked for."""
        return self._receipt.joined([chunk async for chunk in self])

    async def __aenter__(self) -> AsyncSynthesis:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class AsyncTalk(AsyncSynthesis):
    """Speech of a text that is being written; everything `Talk` says holds here. One task may write, another read."""

    def __init__(self, client: AsyncClient, loop: ClientLoop, asked: SpeechRequest) -> None:
        super().__init__(client, loop, asked, 0)
        self._task: asyncio.Task[None] | None = None
        self._writer = _Writer(loop, self._mailbox.room, asked.request_id)

    async def write(self, text: str) -> None:
        """As `Talk.write`; waits while the broker takes no more."""
        self._writer.check()
        await self._writer.write(text)

    def flush(self) -> None:
        """As `Talk.flush`; waits for nothing."""
        self._writer.flush()

    def end(self) -> None:
        """As `Talk.end`; waits for nothing."""
        self._writer.end()

    def write_all(self, pieces: Iterable[str] | AsyncIterable[str]) -> None:
        """Writes `pieces` and ends, in a task of its own; what they raise is told to whoever reads."""
        self._writer.leave()
        self._task = asyncio.create_task(self._writer.run(pieces))

    def close(self) -> None:
        super().close()
        if self._task:
            self._task.cancel()


class _Writer(Writer):
    def __init__(self, loop: ClientLoop, room: AsyncRoom, request_id: str) -> None:
        super().__init__(loop, request_id)
        self._room = room

    async def run(self, pieces: Iterable[str] | AsyncIterable[str]) -> None:
        """Writes all pieces, as long as anybody wants to hear them."""
        with self.whole():
            if isinstance(pieces, AsyncIterable):
                async for text in pieces:
                    await self.write(text)
            else:
                for text in pieces:
                    await self.write(text)

    async def write(self, text: str) -> None:
        """Writes a piece, as there is room for it."""
        for piece in self._slices(text):
            await self._room.enter(len(piece.encode()))
            self._hand_over(piece)


class AsyncMailbox:
    """Events for the event loop that made it, put there by the client's IO thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.room = AsyncRoom()

    def put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:
            # The event loop is closed: there is nobody left to read.
            if not self._loop.is_closed():
                raise

    def _take(self, event: Event) -> None:
        self.room.put(event)
        if not isinstance(event, Sent):
            self._events.put_nowait(event)

    async def get(self) -> Event:
        return await self._events.get()
