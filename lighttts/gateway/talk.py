"""Text in, audio out over a WebSocket: what is whole of the text is spoken while the rest is still being written."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, Protocol
from urllib.parse import urlsplit

from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lighttts.gateway.connection import ClientGone, unless
from lighttts.gateway.dialects import Bistream, Dialect, Own
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import Encoder
from lighttts.gateway.failures import Failure, Refused, failure_of
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.gateway.speech import Speaker, Wish
from lighttts.gateway.texts import Said, Texts

SILENCE_S = 300.0
"""Seconds that a client may say nothing before its text has ended."""
_POLICY, _INTERNAL, _LATER = 1008, 1011, 1013
"""Codes that a connection is closed with (RFC 6455, and IANA's list)."""


class Talk:
    """Serves WebSockets. `origins`: the pages that may open one, beside those of this server itself."""

    def __init__(self, speaker: Speaker, origins: tuple[str, ...]) -> None:
        self.speaker = speaker
        self._origins = origins

    def routes(self, door: Door) -> list[WebSocketRoute]:
        """The paths of this door."""
        return [
            WebSocketRoute("/ws/speech", _Socket(self, door, Own())),
            WebSocketRoute("/inference_zero_shot_bistream", _Socket(self, door, Bistream())),
        ]

    def check_origin(self, socket: WebSocket) -> None:
        """Browsers let any page open a WebSocket to anywhere. Raises `Refused` with 403."""
        origin = socket.headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return
        if urlsplit(origin).netloc != socket.headers.get("host"):
            raise Refused(403, "forbidden", "pages of this origin may not use this server: see gateway.cors_origins")


class _Socket:
    """One path as an ASGI application."""

    def __init__(self, talk: Talk, door: Door, dialect: Dialect) -> None:
        self._talk = talk
        self._door = door
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        try:
            self._talk.check_origin(socket)
            key = self._door.holder(socket)
        except Refused as error:
            await socket.send_denial_response(self._door.refusal(socket, error))
            return
        await socket.accept()
        try:
            await Conversation(_SocketPeer(socket, self._dialect), self._talk.speaker).hold(key)
            await socket.close()
        except (ClientGone, WebSocketDisconnect):
            notes_of(scope).update(error="client_gone")
        except Exception as error:
            await self._fail(socket, failure_of(error))

    async def _fail(self, socket: WebSocket, failure: Failure) -> None:
        notes_of(socket.scope).update(error=failure.code)
        # The client may have left meanwhile.
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_json(self._dialect.failed(failure))
            again = failure.retry_after is not None
            await socket.close(_LATER if again else _POLICY if failure.status < 500 else _INTERNAL)


class Peer(Protocol):
    """Who speaks with the gateway, over whatever it is."""

    @property
    def notes(self) -> dict[str, object]:
        """What the log line will say."""

    async def begin(self) -> tuple[Wish, str]:
        """What each text is to be spoken with, and the audio format. Raises `Refused`, `ClientGone`."""

    async def said(self) -> Said:
        """What it says next; after the end returns only when it says more. Raises `Refused`, `ClientGone`."""

    async def send(self, piece: bytes, sample_rate: int) -> None:
        """Sends a piece of audio."""

    async def done(self, tokens: int) -> None:
        """Says that it was the last."""


class _SocketPeer:
    """One at a WebSocket."""

    def __init__(self, socket: WebSocket, dialect: Dialect) -> None:
        self._socket = socket
        self._dialect = dialect
        self.notes = notes_of(socket.scope)

    async def begin(self) -> tuple[Wish, str]:
        return await self._dialect.begin(self._socket)

    async def said(self) -> Said:
        return await self._dialect.text(self._socket)

    async def send(self, piece: bytes, sample_rate: int) -> None:
        await self._socket.send_bytes(piece)

    async def done(self, tokens: int) -> None:
        if said := self._dialect.done(tokens):
            await self._socket.send_json(said)


class Conversation:
    """One connection, from its first message to the last audio."""

    def __init__(self, peer: Peer, speaker: Speaker) -> None:
        self._peer = peer
        self._speaker = speaker
        self._texts = Texts()
        self._encoder: Encoder | None = None
        self._rate = 0
        self._tokens = 0

    async def hold(self, key: ApiKey | None) -> None:
        """Speaks until all is said. Raises `Refused`, a `LightTTSError`, or `ClientGone`."""
        with self._speaker.admitted(key):
            try:
                async with asyncio.timeout(SILENCE_S):
                    wish, kind = await self._peer.begin()
            except TimeoutError as error:
                raise _silent() from error
            self._peer.notes.update(speech=wish.method, format=kind)
            await unless(self._listen(), self._speak(wish, kind))

    async def _listen(self) -> NoReturn:
        """Takes texts as they come, so that a client that leaves is noticed at any time."""
        while True:
            silence = None if self._texts.ended else SILENCE_S
            try:
                async with asyncio.timeout(silence):
                    said = await self._peer.said()
            except TimeoutError as error:
                raise _silent() from error
            self._texts.add(said)

    async def _speak(self, wish: Wish, kind: str) -> None:
        while text := await self._texts.take():
            await self._say(replace(wish, text=text), kind)
        if self._encoder:
            await self._send(await asyncio.to_thread(self._encoder.finish))
        await self._peer.done(self._tokens)

    async def _say(self, wish: Wish, kind: str) -> None:
        with self._speaker.asked(wish) as synthesis:
            self._rate = await synthesis.sample_rate()
            self._encoder = self._encoder or Encoder(kind, self._rate)
            async for chunk in synthesis:
                await self._send(await asyncio.to_thread(self._encoder.encode, chunk))
            self._tokens += synthesis.tokens

    async def _send(self, piece: bytes) -> None:
        if piece:
            await self._peer.send(piece, self._rate)


def _silent() -> Refused:
    return Refused(408, "timeout", f"nothing was said for {SILENCE_S:g} s")
