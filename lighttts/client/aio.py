"""`AsyncClient`: the asyncio face. Events reach the event loop by `call_soon_threadsafe`, no socket is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from os import PathLike
from pathlib import Path

from lighttts.client.async_voices import Answer, AsyncVoices
from lighttts.client.events import Answered, Chunk, Event, Failed
from lighttts.client.loop import ClientLoop
from lighttts.client.receipt import Receipt
from lighttts.client.request import Decoded, Output, Recording, SampleFormat, make_convert, make_synth
from lighttts.client.stream import Timeouts
from lighttts.client.voices import Asking
from lighttts.errors import ProtocolError
from lighttts.transport.endpoints import DEFAULT_BROKER
from lighttts.transport.wire import GetStatus, SpeechRequest, Status


class AsyncClient(AsyncVoices):
    """A connection to a LightTTS broker for asyncio programs; everything `Client` says holds here.

    async with AsyncClient() as client:
        async for chunk in client.synthesize("Hello there."):
            await play(chunk)
    """

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        keys: str | PathLike[str] | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
    ) -> None:
        timeouts = Timeouts(connect=connect_timeout, chunk=timeout)
        self._loop = ClientLoop(broker, timeouts, Path(keys) if keys is not None else None)
        self._loop.close_with(self)

    def synthesize(
        self,
        text: str,
        voice: str | None = None,
        prompt: Recording | None = None,
        prompt_text: str = "",
        *,
        instruct: str = "",
        style: str = "",
        seed: int | None = None,
        speed: float = 1.0,
        output: Output = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> AsyncSynthesis:
        """As `Client.synthesize`. Must be called in a running event loop; a prompt given as a path is read at once."""
        synth = make_synth(
            text,
            voice=voice,
            prompt=prompt,
            prompt_text=prompt_text,
            instruct=instruct,
            style=style,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            owner=owner,
        )
        return AsyncSynthesis(self, self._loop, synth, retries)

    def convert(
        self,
        source: Recording,
        voice: str | None = None,
        prompt: Recording | None = None,
        *,
        seed: int | None = None,
        speed: float = 1.0,
        output: Decoded = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> AsyncSynthesis:
        """As `Client.convert`. Must be called in a running event loop; files given as paths are read at once."""
        asked = make_convert(
            source,
            voice=voice,
            prompt=prompt,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            owner=owner,
        )
        return AsyncSynthesis(self, self._loop, asked, retries)

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

    async def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        mailbox = _Mailbox()
        self._loop.query(asking, mailbox, patient=patient)
        event = await mailbox.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Answered) and isinstance(event.message, answer):
            return event.message
        raise ProtocolError("the broker answered a question with something else")


class AsyncSynthesis:
    """Speech on its way: an asynchronous iterator of chunks; everything `Synthesis` says holds here."""

    def __init__(self, client: AsyncClient, loop: ClientLoop, asked: SpeechRequest, retries: int) -> None:
        self._client = client
        self._loop = loop
        self._receipt = Receipt(asked)
        self._mailbox = _Mailbox()
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
        """Speech tokens (25 a second) behind the chunks taken so far; after the end, of the whole request."""
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


class _Mailbox:
    """Events for the event loop that made it, put there by the client's IO thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            # The event loop is closed: there is nobody left to read.
            if not self._loop.is_closed():
                raise

    async def get(self) -> Event:
        return await self._events.get()
