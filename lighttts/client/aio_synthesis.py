"""What the asyncio face gives to whoever asks for speech; everything `lighttts.client.synthesis` says holds here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING

from lighttts.client.events import Chunk, Event, Sent
from lighttts.client.loop import ClientLoop
from lighttts.client.receipt import Receipt
from lighttts.client.request import checked_piece
from lighttts.client.room import SLICE, AsyncRoom, ended
from lighttts.client.script import Mark
from lighttts.errors import InvalidInput, LightTTSError
from lighttts.transport.wire import SpeechRequest

if TYPE_CHECKING:
    from lighttts.client.aio import AsyncClient


class AsyncSynthesis:
    """Speech on its way: an asynchronous iterator of chunks; everything `Synthesis` says holds here."""

    def __init__(self, client: AsyncClient, loop: ClientLoop, asked: SpeechRequest, retries: int) -> None:
        self._client = client
        self._loop = loop
        self._receipt = Receipt(asked)
        self._mailbox = AsyncMailbox()
        loop.open(asked, self._mailbox, retries)
        loop.cancel_with(self, asked.request_id)

    @property
    def request_id(self) -> str:
        """The request's id, as in the broker's log; retries have `.1`, `.2` and so on behind it."""
        return self._receipt.request_id

    @property
    def seed(self) -> int:
        """The seed that makes this audio again."""
        return self._receipt.seed

    @property
    def tokens(self) -> int:
        """Speech tokens (25 a second) behind the chunks taken so far; after the end, of the whole request, and
        with CosyVoice3 also those of long silence that were not spoken."""
        return self._receipt.tokens

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

    def close(self) -> None:
        """Cancels the request if it is not over; reading on raises `Cancelled`. Idempotent; waits for nothing."""
        if self._receipt.cancelled():
            self._loop.cancel(self.request_id)

    cancel = close

    async def __aenter__(self) -> AsyncSynthesis:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class AsyncTalk(AsyncSynthesis):
    """Speech of a text that is being written; everything `Talk` says holds here. One task may write, another read."""

    def __init__(self, client: AsyncClient, loop: ClientLoop, asked: SpeechRequest) -> None:
        super().__init__(client, loop, asked, 0)
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._writer = _Writer(loop, self._mailbox.room, asked.request_id)

    async def write(self, text: str) -> None:
        """As `Talk.write`; waits while the broker takes no more."""
        if self._ended:
            raise ended()
        await self._writer.write(text)

    def flush(self) -> None:
        """As `Talk.flush`; waits for nothing."""
        if self._ended:
            raise ended()
        self._loop.write(self.request_id, Mark.FLUSH)

    def end(self) -> None:
        """As `Talk.end`; waits for nothing."""
        if not self._ended:
            self._ended = True
            self._loop.write(self.request_id, Mark.END)

    def write_all(self, pieces: Iterable[str] | AsyncIterable[str]) -> None:
        """Writes `pieces` and ends, in a task of its own; what they raise is told to whoever reads."""
        self._ended = True
        self._task = asyncio.create_task(self._writer.run(pieces))

    def close(self) -> None:
        super().close()
        if self._task:
            self._task.cancel()


class _Writer:
    """Writes the text of one request."""

    def __init__(self, loop: ClientLoop, room: AsyncRoom, request_id: str) -> None:
        self._loop = loop
        self._room = room
        self._request_id = request_id

    async def run(self, pieces: Iterable[str] | AsyncIterable[str]) -> None:
        """Writes all pieces, as long as anybody wants to hear them."""
        try:
            if isinstance(pieces, AsyncIterable):
                async for text in pieces:
                    await self.write(text)
            else:
                for text in pieces:
                    await self.write(text)
        except LightTTSError as error:
            self._loop.fail(self._request_id, error)
        except Exception as error:
            failure = InvalidInput(f"the text's pieces failed: {type(error).__name__}: {error}", field="text")
            failure.__cause__ = error
            self._loop.fail(self._request_id, failure)
        else:
            self._loop.write(self._request_id, Mark.END)

    async def write(self, text: str) -> None:
        """Writes a piece, slice by slice."""
        text = checked_piece(text)
        for at in range(0, len(text), SLICE):
            piece = text[at : at + SLICE]
            await self._room.enter(len(piece.encode()))
            self._loop.write(self._request_id, piece)


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
