"""Registered voices: what lighttts.v1.Speech has of them. A voice belongs to an API key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lighttts.client import AsyncClient, RegisteredVoice
from lighttts.gateway.own_voices import OwnVoices
from lighttts.gateway.rpc.calls import Call, Handler
from lighttts.gateway.speech import Speaker

PIECE_BYTES = 1 << 20
"""Of an exported file: clients take messages of up to 4 MiB unless they are told otherwise."""


class VoiceCalls:
    """Answers calls with messages of `kinds`."""

    def __init__(self, client: AsyncClient, speaker: Speaker, kinds: Mapping[str, Any]) -> None:
        self._client = client
        self._speaker = speaker
        self._kinds = kinds

    def methods(self) -> dict[str, Handler]:
        """Handlers by method."""
        return {
            "ListVoices": self._list,
            "AddVoice": self._counted(self._add),
            "ShowVoice": self._show,
            "RenameVoice": self._counted(self._rename),
            "RemoveVoice": self._counted(self._remove),
            "ExportVoice": self._counted(self._export),
            "ImportVoice": self._counted(self._import),
        }

    def _counted(self, handler: Handler) -> Handler:
        """What makes work for others counts as a request of its key."""

        async def handle(call: Call) -> None:
            with self._speaker.admitted(call.key):
                await handler(call)

        return handle

    async def _list(self, call: Call) -> None:
        await call.request()
        preset, registered = await self._of(call).all()
        voices = [*(self._kinds["Voice"](name=name) for name in preset), *map(self._voice, registered)]
        await call.send(self._kinds["ListVoicesResponse"](voices=voices))

    async def _add(self, call: Call) -> None:
        asked = await call.request()
        how = {"shared": asked.shared, "replace": asked.replace}
        await call.send(self._voice(await self._of(call).add(asked.name, asked.prompt, asked.prompt_text, **how)))

    async def _show(self, call: Call) -> None:
        asked = await call.request()
        await call.send(self._voice(await self._of(call).show(asked.name)))

    async def _rename(self, call: Call) -> None:
        asked = await call.request()
        await call.send(self._voice(await self._of(call).rename(asked.name, asked.to)))

    async def _remove(self, call: Call) -> None:
        asked = await call.request()
        await call.send(self._voice(await self._of(call).remove(asked.name)))

    async def _export(self, call: Call) -> None:
        asked = await call.request()
        content = await self._of(call).export(asked.name)
        for at in range(0, len(content), PIECE_BYTES):
            await call.send(self._kinds["VoiceFile"](content=content[at : at + PIECE_BYTES]))

    async def _import(self, call: Call) -> None:
        asked = await call.request()
        how = {"shared": asked.shared, "replace": asked.replace}
        await call.send(self._voice(await self._of(call).add_file(asked.file, asked.name, **how)))

    def _of(self, call: Call) -> OwnVoices:
        return OwnVoices(self._client, call.key, call.notes)

    def _voice(self, voice: RegisteredVoice) -> Any:
        return self._kinds["Voice"](
            name=voice.name,
            owner=voice.owner,
            shared=voice.shared,
            created=int(voice.created),
            bytes=voice.size,
            sha256=voice.digest,
            prompt_text=voice.text,
        )
