"""What can be done with registered voices, at whatever door: in whose name, and what of it the log tells."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from lighttts.client import AsyncClient, RegisteredVoice
from lighttts.errors import ProtocolError, Unavailable, UnknownVoice
from lighttts.gateway.failures import Refused
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.speech import owner_of

T = TypeVar("T")


class Listed(NamedTuple):
    """The names of preset voices, and the voices that were added."""

    preset: list[str]
    registered: list[RegisteredVoice]


class OwnVoices:
    """The voices of a key's holder, and those that are shared; where the gateway has no keys, everybody's.

    `notes`, for the log line of the request, get every change. What is asked for by name and is not there is `Refused`
    with 404; everything else raises what the client library does.
    """

    def __init__(self, client: AsyncClient, key: ApiKey | None, notes: dict[str, object]) -> None:
        self._client = client
        self._owner = owner_of(key)
        self._notes = notes

    async def all(self) -> Listed:
        """Those that can be asked for now."""
        names = await self._client.voices(owner=self._owner)
        try:
            # Backwards: of two of a name, one's own comes first and is the one that is meant.
            added = {voice.name: voice for voice in reversed(await self._client.registered_voices(owner=self._owner))}
        except (Unavailable, ProtocolError):
            # Those that are named are there all the same: preset ones, if the others cannot be had now.
            added = {}
        preset = [name for name in names if name not in added]
        return Listed(preset, [added[name] for name in names if name in added])

    async def show(self, name: str) -> RegisteredVoice:
        """What is known of a voice."""
        return await _known(self._client.show_voice(name, owner=self._owner))

    async def add(self, name: str, recording: bytes, text: str, *, shared: bool, replace: bool) -> RegisteredVoice:
        """Adds a voice."""
        adding = self._client.add_voice(name, recording, text, shared=shared, replace=replace, owner=self._owner)
        return await self._done("added", adding)

    async def add_file(self, file: bytes, name: str, *, shared: bool, replace: bool) -> RegisteredVoice:
        """Adds the voice of an exported file, under `name` if that is not empty."""
        adding = self._client.import_voice(file, name or None, shared=shared, replace=replace, owner=self._owner)
        return await self._done("added", adding)

    async def rename(self, name: str, to: str) -> RegisteredVoice:
        """Calls a voice otherwise."""
        return await self._done("renamed", _known(self._client.rename_voice(name, to, owner=self._owner)))

    async def remove(self, name: str) -> RegisteredVoice:
        """Removes a voice."""
        return await self._done("removed", _known(self._client.remove_voice(name, owner=self._owner)))

    async def export(self, name: str) -> bytes:
        """The content of a file that holds a voice."""
        return await _known(self._client.export_voice(name, owner=self._owner))

    async def _done(self, what: str, work: Awaitable[RegisteredVoice]) -> RegisteredVoice:
        voice = await work
        self._notes.update(voice=voice.name, change=what)
        return voice


async def _known(work: Awaitable[T]) -> T:
    """Here a voice is what is asked for: one that is not there is not found, rather than a slip in the request."""
    try:
        return await work
    except UnknownVoice as error:
        raise Refused(404, error.code, error.text, field=error.field) from error
