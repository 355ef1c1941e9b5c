"""`AsyncClient`: the asyncio face. Events reach the event loop by `call_soon_threadsafe`, no socket is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Sequence
from os import PathLike
from pathlib import Path

from lighttts.client.aio_synthesis import AsyncMailbox, AsyncSynthesis, AsyncTalk
from lighttts.client.async_voices import Answer, AsyncVoices
from lighttts.client.events import Answered, Failed
from lighttts.client.loop import ClientLoop
from lighttts.client.request import (
    Decoded,
    Method,
    Output,
    Recording,
    SampleFormat,
    make_convert,
    make_synth,
)
from lighttts.client.stream import Timeouts
from lighttts.client.voices import Asking
from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport.endpoints import DEFAULT_BROKER
from lighttts.transport.wire import GetStatus, Status


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
        text: str | Iterable[str] | AsyncIterable[str],
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
        """As `Client.synthesize`. Must be called in a running event loop; a prompt given as a path is read at once.

        Pieces of a text may come of an asynchronous iterable; a task of its own runs through them.
        """
        if not isinstance(text, str):
            if retries:
                raise InvalidInput("text in pieces cannot be asked for again: leave out retries", field="retries")
            talk = self.talk(
                voice,
                prompt,
                prompt_text,
                instruct=instruct,
                style=style,
                seed=seed,
                speed=speed,
                output=output,
                format=format,
                deadline=deadline,
                owner=owner,
            )
            talk.write_all(text)
            return talk
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

    def talk(
        self,
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
        method: Method = "auto",
        owner: str = "",
    ) -> AsyncTalk:
        """As `Client.talk`. Must be called in a running event loop; one task writes, another reads."""
        synth = make_synth(
            "",
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
            pieces=method,
            owner=owner,
        )
        return AsyncTalk(self, self._loop, synth)

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
        mailbox = AsyncMailbox()
        self._loop.query(asking, mailbox, patient=patient)
        event = await mailbox.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Answered) and isinstance(event.message, answer):
            return event.message
        raise ProtocolError("the broker answered a question with something else")
