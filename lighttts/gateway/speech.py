"""One request's speech: asked for at the broker, encoded as it comes, and let go of when nobody hears it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from starlette.requests import Request

from lighttts import metrics
from lighttts.client import AsyncClient, AsyncSynthesis, AsyncTalk
from lighttts.errors import LightTTSError
from lighttts.gateway.connection import unless_gone
from lighttts.gateway.encoders import Encoder
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.gateway.quotas import Quotas

SERVICE = "gateway"


class Asked(Protocol):
    """What a client asks for."""

    @property
    def method(self) -> str:
        """As the broker calls it."""

    def ask(self, client: AsyncClient) -> AsyncSynthesis:
        """Asks for it, as int16 samples. Raises `InvalidInput`."""

    def of(self, key: ApiKey | None) -> Self:
        """The same as that of a key's holder, whose registered voices it may name."""


def owner_of(key: ApiKey | None) -> str:
    """What the broker calls the holder of a key: nobody where the gateway has no keys."""
    return key.name if key else ""


@dataclass(frozen=True)
class Wish:
    """`text` in the voice of a `prompt` (an audio file) or in a preset or registered `voice`; where that is empty, in
    the broker's first. `instruct` says how to speak, in words. `owner`: whose registered voices are meant, see `of`.
    `deadline`: seconds that it may take, None for the broker's own."""

    text: str
    voice: str = ""
    prompt: bytes | None = None
    prompt_text: str = ""
    speed: float = 1.0
    instruct: str = ""
    style: str = ""
    deadline: float | None = None
    owner: str = ""

    def of(self, key: ApiKey | None) -> Wish:
        return replace(self, owner=owner_of(key))

    @property
    def method(self) -> str:
        """As the broker calls it."""
        if self.instruct:
            return "instruct"
        if self.prompt is None:
            return "preset"
        return "zero_shot" if self.prompt_text else "cross_lingual"

    def ask(self, client: AsyncClient) -> AsyncSynthesis:
        """Asks for it, as int16 samples. Raises `InvalidInput`."""
        return client.synthesize(
            self.text,
            voice=self.voice or None,
            prompt=self.prompt,
            prompt_text=self.prompt_text,
            instruct=self.instruct,
            speed=self.speed,
            style=self.style,
            format="s16",
            owner=self.owner,
            deadline=self.deadline,
        )


@dataclass(frozen=True)
class Conversion:
    """What is said in `source`, an audio file, in another voice; `prompt`, `voice` and `deadline` as in a
    `Wish`."""

    source: bytes
    voice: str = ""
    prompt: bytes | None = None
    speed: float = 1.0
    deadline: float | None = None
    owner: str = ""

    method: ClassVar[str] = "conversion"

    def of(self, key: ApiKey | None) -> Conversion:
        return replace(self, owner=owner_of(key))

    def ask(self, client: AsyncClient) -> AsyncSynthesis:
        """Asks for it, as int16 samples. Raises `InvalidInput`."""
        return client.convert(
            self.source,
            voice=self.voice or None,
            prompt=self.prompt,
            speed=self.speed,
            format="s16",
            owner=self.owner,
            deadline=self.deadline,
        )


class Speaker:
    """Asks a broker for speech, within the quotas of API keys."""

    def __init__(self, client: AsyncClient, quotas: Quotas) -> None:
        self._client = client
        self._quotas = quotas

    async def begin(self, request: Request, wish: Asked, kind: str, key: ApiKey | None) -> tuple[Spoken, bytes]:
        """Speech in format `kind` with its first bytes: only then it is known that there is any.

        Raises `Refused`, a `LightTTSError`, or `ClientGone`.
        """
        spoken = Spoken(self, notes_of(request.scope), wish, kind, key)
        try:
            first = await unless_gone(request.receive, _first(spoken.pieces))
        except BaseException:
            await spoken.pieces.aclose()
            raise
        return spoken, first

    def admitted(self, key: ApiKey | None) -> AbstractContextManager[None]:
        """Counts against the quota of `key`. Raises `Refused`."""
        return self._quotas.admitted(key)

    @contextmanager
    def asked(self, wish: Asked) -> Iterator[AsyncSynthesis]:
        """A request at the broker, which is cancelled if it is not over at the end, counted in all metrics."""
        with _counted(wish.method):
            synthesis = wish.ask(self._client)
            try:
                yield synthesis
            finally:
                synthesis.close()

    @contextmanager
    def talking(self, wish: Wish) -> Iterator[AsyncTalk]:
        """As `asked`, for a text that is still being written; that of `wish` is not looked at."""
        with _counted(wish.method):
            talk = self._client.talk(
                wish.voice or None,
                wish.prompt,
                wish.prompt_text,
                instruct=wish.instruct,
                style=wish.style,
                speed=wish.speed,
                format="s16",
                owner=wish.owner,
            )
            try:
                yield talk
            finally:
                talk.close()


class Spoken:
    """`pieces`: its bytes, never empty ones; to be closed. `tokens`: speech tokens spoken so far (25 a second);
    `sample_rate`: samples a second, known with the first piece. `notes` are for the log line of the request."""

    def __init__(self, speaker: Speaker, notes: dict[str, object], wish: Asked, kind: str, key: ApiKey | None) -> None:
        self.tokens = 0
        self.sample_rate = 0
        self.pieces = self._encoded(speaker, notes, wish, kind, key)

    async def _encoded(
        self, speaker: Speaker, notes: dict[str, object], wish: Asked, kind: str, key: ApiKey | None
    ) -> AsyncGenerator[bytes, None]:
        with speaker.admitted(key), speaker.asked(wish.of(key)) as synthesis:
            notes.update(synthesis=synthesis.request_id, speech=wish.method, format=kind)
            began = time.monotonic()
            self.sample_rate = await synthesis.sample_rate()
            encoder = Encoder(kind, self.sample_rate)
            heard = False
            async for chunk in synthesis:
                if len(chunk) and not heard:
                    heard = True
                    metrics.first_audio.observe(time.monotonic() - began)
                self.tokens = synthesis.tokens
                if piece := await encoder.encode_beside(chunk):
                    yield piece
            if piece := await asyncio.to_thread(encoder.finish):
                yield piece
            self.tokens = synthesis.tokens


async def _first(pieces: AsyncGenerator[bytes, None]) -> bytes:
    async for piece in pieces:
        return piece
    return b""


@contextmanager
def _counted(method: str) -> Iterator[None]:
    metrics.requests_total.labels(SERVICE, method).inc()
    active = metrics.active_requests.labels(SERVICE)
    with active.track_inprogress(), metrics.request_duration.labels(SERVICE).time():
        try:
            yield
        except LightTTSError as error:
            metrics.requests_failed.labels(SERVICE, error.code).inc()
            raise
