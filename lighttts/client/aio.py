"""`AsyncClient`: the asyncio face. Events reach the event loop by `call_soon_threadsafe`, no socket is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable

from lighttts.client.aio_synthesis import AsyncMailbox, AsyncSynthesis, AsyncTalk
from lighttts.client.async_voices import AsyncVoices
from lighttts.client.face import Face
from lighttts.client.voices import Answer, Asking, answer_in
from lighttts.transport.wire import GetStatus, SpeechRequest, Status


class AsyncClient(Face[Iterable[str] | AsyncIterable[str], AsyncSynthesis, AsyncTalk], AsyncVoices):
    """A connection to a LightTTS broker for asyncio programs; everything `Client` says holds here.

        async with AsyncClient() as client:
            async for chunk in client.synthesize("Hello there."):
                await play(chunk)

    `synthesize`, `talk` and `convert` must be called in a running event loop, and read files given as paths at once.
    Pieces of a text may come of an asynchronous iterable; of a `talk`, one task writes, another reads.
    """

    async def status(self) -> Status:
        """What the broker is doing, and its workers. Raises `Unavailable`."""
        return await self._ask(GetStatus, Status)

    async def close(self) -> None:
        """Cancels what is in progress and closes the connection. Idempotent."""
        await asyncio.to_thread(self._loop.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _speech(self, asked: SpeechRequest, retries: int) -> AsyncSynthesis:
        return AsyncSynthesis(self, self._loop, asked, retries)

    def _talk(self, asked: SpeechRequest) -> AsyncTalk:
        return AsyncTalk(self, self._loop, asked)

    def _spoken(self, asked: SpeechRequest, pieces: Iterable[str] | AsyncIterable[str]) -> AsyncSynthesis:
        talk = self._talk(asked)
        talk.write_all(pieces)
        return talk

    async def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        mailbox = AsyncMailbox()
        self._loop.query(asking, mailbox, patient=patient)
        return answer_in(await mailbox.get(), answer)
