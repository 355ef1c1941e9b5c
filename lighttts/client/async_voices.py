"""What `AsyncClient` can do with registered voices."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lighttts.client import voices as asked
from lighttts.client.request import Recording
from lighttts.client.voices import Answer, Asking, Content, RegisteredVoice
from lighttts.transport.wire import VoiceDone, VoiceList, Voices


class AsyncVoices(ABC):
    """As `SyncVoices`, where everything is described. Files given as paths are read at once."""

    async def voices(self, *, owner: str = "") -> tuple[str, ...]:
        """The names of the voices that can be asked for now: the preset ones, then those registered."""
        return (await self._ask(asked.listing(owner), Voices)).names

    async def registered_voices(self, *, owner: str = "") -> tuple[RegisteredVoice, ...]:
        """The voices that were added, one's own and those that are shared, without what is said in them."""
        return tuple(map(asked.row, (await self._ask(asked.acting("list", owner=owner), VoiceList)).voices))

    async def add_voice(
        self,
        name: str,
        recording: Recording,
        text: str = "",
        *,
        shared: bool = False,
        replace: bool = False,
        owner: str = "",
    ) -> RegisteredVoice:
        """Adds a voice, to be asked for by `name` from then on."""
        asking = asked.adding(name, recording, text, shared=shared, replace=replace, owner=owner)
        return asked.registered(await self._ask(asking, VoiceDone, patient=True))

    async def show_voice(self, name: str, *, owner: str = "") -> RegisteredVoice:
        """What is known of a voice."""
        return asked.registered(await self._ask(asked.acting("show", name, owner=owner), VoiceDone))

    async def rename_voice(self, name: str, to: str, *, owner: str = "") -> RegisteredVoice:
        """Calls a voice otherwise."""
        return asked.registered(await self._ask(asked.acting("rename", name, to=to, owner=owner), VoiceDone))

    async def remove_voice(self, name: str, *, owner: str = "") -> RegisteredVoice:
        """Removes a voice with all that is kept of it."""
        return asked.registered(await self._ask(asked.acting("remove", name, owner=owner), VoiceDone))

    async def export_voice(self, name: str, *, owner: str = "") -> bytes:
        """The content of a file that holds the voice, for `import_voice`."""
        return asked.exported(await self._ask(asked.acting("export", name, owner=owner), VoiceDone))

    async def import_voice(
        self,
        file: Content,
        name: str | None = None,
        *,
        shared: bool = False,
        replace: bool = False,
        owner: str = "",
    ) -> RegisteredVoice:
        """Adds the voice of an exported file, under the name it has there or another."""
        voice = asked.read_file(file)
        return await self.add_voice(
            name or voice.name, voice.recording, voice.text, shared=shared, replace=replace, owner=owner
        )

    @abstractmethod
    async def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        """The answer to a question; `patient`: it may take as long as the beginning of a request."""
