"""Our own service: lighttts.v1.Speech, as lighttts.proto says it."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from lighttts.client import AsyncClient
from lighttts.gateway.rpc.calls import Call, Calls
from lighttts.gateway.rpc.protos import Service
from lighttts.gateway.rpc.requests import audio_of, conversion_of, format_of, wish_of
from lighttts.gateway.rpc.room import Room
from lighttts.gateway.rpc.talk import CallPeer
from lighttts.gateway.rpc.voices import VoiceCalls
from lighttts.gateway.speech import Asked, Speaker, Spoken
from lighttts.gateway.talk import Conversation

WHOLE_MAX_BYTES = 64 << 20
"""Longest audio that is answered at once: 23 minutes as samples."""
WHOLES_MAX_BYTES = 1 << 30
"""Of all such answers together."""


class Speech:
    """Answers the calls of this service."""

    def __init__(self, client: AsyncClient, speaker: Speaker) -> None:
        self.service = Service("lighttts.proto", "lighttts.v1.Speech")
        self._client = client
        self._speaker = speaker
        self._room = Room(WHOLE_MAX_BYTES, WHOLES_MAX_BYTES)
        self._audio = self.service.kinds["Audio"]

    def handlers(self, calls: Calls) -> Any:
        """All of it, for a server."""
        methods = {
            "Synthesize": self._synthesize,
            "SynthesizeStream": self._synthesize_stream,
            "Talk": self._talk,
            "Convert": self._convert,
            **VoiceCalls(self._client, self._speaker, self.service.kinds).methods(),
        }
        return calls.handlers(self.service, methods)

    async def _synthesize(self, call: Call) -> None:
        asked = await call.request()
        spoken = Spoken(
            self._speaker,
            call.notes,
            wish_of(asked.manner, asked.text, call.deadline),
            format_of(asked.manner),
            call.key,
        )
        with self._room.shelf() as shelf:
            async with aclosing(spoken.pieces) as pieces:
                async for piece in pieces:
                    shelf.put(piece)
            await call.send(audio_of(self._audio, bytes(shelf.content), spoken.sample_rate))

    async def _synthesize_stream(self, call: Call) -> None:
        asked = await call.request()
        await self._stream(call, wish_of(asked.manner, asked.text, call.deadline), format_of(asked.manner))

    async def _convert(self, call: Call) -> None:
        asked = await call.request()
        await self._stream(call, conversion_of(asked, call.deadline), format_of(asked.manner))

    async def _stream(self, call: Call, wish: Asked, kind: str) -> None:
        spoken = Spoken(self._speaker, call.notes, wish, kind, call.key)
        async with aclosing(spoken.pieces) as pieces:
            async for piece in pieces:
                await call.send(audio_of(self._audio, piece, spoken.sample_rate))

    async def _talk(self, call: Call) -> None:
        peer = CallPeer(call, self._audio)
        with self._speaker.admitted(call.key):
            wish, kind = await peer.begin()
            call.notes.update(speech=wish.method, format=kind)
            await Conversation(peer, self._speaker).hold(wish.of(call.key), kind)
