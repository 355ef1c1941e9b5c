"""Text in, audio out over a WebSocket: a text is spoken while it is being written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lighttts.client import AsyncTalk
from lighttts.gateway.board import Board
from lighttts.gateway.connection import ClientGone, unless
from lighttts.gateway.dialects import Bistream, Dialect, Own
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import Encoder
from lighttts.gateway.failures import Failure, Refused, failure_of
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.gateway.openai import OPENAI_MODELS
from lighttts.gateway.speech import Speaker, Wish
from lighttts.gateway.texts import Said, Texts

T = TypeVar("T")
SILENCE_S = 300.0
"""Seconds that a client may say nothing before its text has ended."""
PAUSE_S = 15.0
"""Seconds after which a request ends whose client says nothing: it holds places at workers, and the broker would end it
after 30. What is said later is spoken by another one."""
MODEL_ALIASES = ("default", *OPENAI_MODELS)
_POLICY, _INTERNAL, _LATER = 1008, 1011, 1013
"""Codes that a connection is closed with (RFC 6455, and IANA's list)."""


class Talk:
    """Serves WebSockets. `origins`: the pages that may open one, beside those of this server itself."""

    def __init__(self, speaker: Speaker, board: Board, origins: tuple[str, ...]) -> None:
        self.speaker = speaker
        self._board = board
        self._origins = origins

    def routes(self, door: Door) -> list[WebSocketRoute]:
        """The paths of this door."""
        return [
            WebSocketRoute("/ws/speech", _Socket(self, door, Own())),
            WebSocketRoute("/inference_zero_shot_bistream", _Socket(self, door, Bistream())),
        ]

    async def styled(self, wish: Wish) -> Wish:
        """The wish with the style that its model stands for. Raises `Refused`, `Unavailable`."""
        style = await self._board.style(wish.style, MODEL_ALIASES) if wish.style else ""
        if style is None:
            raise Refused(400, "model_not_found", f"there is no model {wish.style!r} here", field="model")
        return replace(wish, style=style)

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
            await self._converse(socket, key)
        except (ClientGone, WebSocketDisconnect):
            notes_of(scope).update(error="client_gone")
        except Exception as error:
            await self._fail(socket, failure_of(error))

    async def _converse(self, socket: WebSocket, key: ApiKey | None) -> None:
        """Speaks one text, or one after another until the client has enough."""
        wish, kind = await self._begin(socket)
        while True:
            notes_of(socket.scope).update(speech=wish.method, format=kind)
            with self._talk.speaker.admitted(key):
                peer = _SocketPeer(socket, self._dialect)
                tokens = await Conversation(peer, self._talk.speaker).hold(wish.of(key), kind)
            # By now nobody listens for more of this text: what comes after this is the next.
            if said := self._dialect.done(tokens):
                await socket.send_json(said)
            if not self._dialect.again:
                await socket.close()
                return
            try:
                wish, kind = await self._begin(socket)
            except ClientGone:
                return

    async def _begin(self, socket: WebSocket) -> tuple[Wish, str]:
        wish, kind = await said_in_time(self._dialect.begin(socket))
        return await self._talk.styled(wish), kind

    async def _fail(self, socket: WebSocket, failure: Failure) -> None:
        notes_of(socket.scope).update(error=failure.code)
        # The client may have left meanwhile.
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_json(self._dialect.failed(failure))
            again = failure.retry_after is not None
            await socket.close(_LATER if again else _POLICY if failure.status < 500 else _INTERNAL)


class Peer(Protocol):
    """Who speaks with the gateway, over whatever it is."""

    async def said(self) -> Said:
        """What it says next; after the end returns only when it says more. Raises `Refused`, `ClientGone`."""

    async def send(self, piece: bytes, sample_rate: int) -> None:
        """Sends a piece of audio."""


class _SocketPeer:
    """One at a WebSocket."""

    def __init__(self, socket: WebSocket, dialect: Dialect) -> None:
        self._socket = socket
        self._dialect = dialect

    async def said(self) -> Said:
        return await self._dialect.text(self._socket)

    async def send(self, piece: bytes, sample_rate: int) -> None:
        await self._socket.send_bytes(piece)


class Conversation:
    """One text, from its first piece to the last audio."""

    def __init__(self, peer: Peer, speaker: Speaker) -> None:
        self._peer = peer
        self._speaker = speaker
        self._texts = Texts()
        self._encoder: Encoder | None = None
        self._rate = 0
        self._tokens = 0

    async def hold(self, wish: Wish, kind: str) -> int:
        """Speaks until all is said; returns how many speech tokens that was.

        Raises `Refused`, a `LightTTSError`, or `ClientGone`.
        """
        await unless(self._listen(), self._speak(wish, kind))
        return self._tokens

    async def _listen(self) -> NoReturn:
        """Takes texts as they come, so that a client that leaves is noticed at any time."""
        while True:
            said = self._peer.said()
            self._texts.add(await said if self._texts.ended else await said_in_time(said))

    async def _speak(self, wish: Wish, kind: str) -> None:
        while await self._texts.begun():
            await self._say(wish, kind)
        if self._encoder:
            await self._send(await asyncio.to_thread(self._encoder.finish))

    async def _say(self, wish: Wish, kind: str) -> None:
        with self._speaker.talking(wish) as talk:
            await unless(self._write(talk), self._hear(talk, kind))

    async def _write(self, talk: AsyncTalk) -> NoReturn:
        """Passes on the text until it ends, or pauses."""
        said = Said("")
        while not said.end:
            try:
                async with asyncio.timeout(PAUSE_S):
                    said = await self._texts.take()
            except TimeoutError:
                break
            await talk.write(said.text)
            if said.flush:
                talk.flush()
        talk.end()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def _hear(self, talk: AsyncTalk, kind: str) -> None:
        self._rate = await talk.sample_rate()
        self._encoder = self._encoder or Encoder(kind, self._rate)
        async for chunk in talk:
            await self._send(await asyncio.to_thread(self._encoder.encode, chunk))
        self._tokens += talk.tokens

    async def _send(self, piece: bytes) -> None:
        if piece:
            await self._peer.send(piece, self._rate)


async def said_in_time(said: Awaitable[T]) -> T:
    """What a client says next. Raises `Refused` when it says nothing for `SILENCE_S`."""
    try:
        async with asyncio.timeout(SILENCE_S):
            return await said
    except TimeoutError as error:
        raise Refused(408, "timeout", f"nothing was said for {SILENCE_S:g} s") from error
