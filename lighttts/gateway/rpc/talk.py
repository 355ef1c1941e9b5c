"""Talk: the conversation that WebSockets have, over a call."""

from __future__ import annotations

import asyncio
from typing import Any

from lighttts.gateway.failures import Refused
from lighttts.gateway.rpc.calls import Call
from lighttts.gateway.rpc.requests import audio_of, format_of, wish_of
from lighttts.gateway.speech import Wish
from lighttts.gateway.talk import said_in_time
from lighttts.gateway.texts import Said


class CallPeer:
    """The other end of a call of Talk. Answers with messages of class `audio`."""

    def __init__(self, call: Call, audio: Any) -> None:
        self._call = call
        self._audio = audio
        self._ended = False

    async def begin(self) -> tuple[Wish, str]:
        """The manner of all that follows, and the audio format. Raises `Refused`."""
        asked = await said_in_time(self._call.next_request())
        if asked is None or asked.WhichOneof("message") != "begin":
            raise Refused(400, "invalid_input", "the first message must be a begin", field="begin")
        return wish_of(asked.begin), format_of(asked.begin)

    async def said(self) -> Said:
        """What comes next. Raises `Refused`."""
        asked = await self._call.next_request()
        if asked is None:
            if self._ended:
                # Nothing more can come, and the call is cancelled if the client leaves.
                await asyncio.get_running_loop().create_future()
            self._ended = True
            return Said("", end=True)
        kind = asked.WhichOneof("message")
        if kind == "text":
            return Said(asked.text)
        if kind not in ("flush", "end"):
            raise Refused(
                400, "invalid_input", "after the begin a text, a flush or an end must follow", field=kind or ""
            )
        self._ended = self._ended or kind == "end"
        return Said("", flush=kind == "flush", end=kind == "end")

    async def send(self, piece: bytes, sample_rate: int) -> None:
        """Sends a piece of audio."""
        await self._call.send(audio_of(self._audio, piece, sample_rate))
