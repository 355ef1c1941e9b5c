"""What `Client` can do with registered voices."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lighttts.client import voices as asked
from lighttts.client.request import Recording
from lighttts.client.voices import Answer, Asking, Content, RegisteredVoice
from lighttts.transport.wire import VoiceDone, VoiceList, Voices


class SyncVoices(ABC):
    """A voice is a recording with a name. It belongs to the key of whoever added it, and is theirs alone unless it is
    shared; where keys are not used, it is everybody's.

    All methods raise `Unavailable`; those of a voice by its name `UnknownVoice`, and `Forbidden` if it is another's to
    change. `owner` is for gateways: whose voices are meant of those they serve. What was asked over a connection that
    broke is asked again over the next: of a removal that was done the answer may then be that there is no such voice.
    """

    def voices(self, *, owner: str = "") -> tuple[str, ...]:
        """The names of the voices that can be asked for now: the preset ones, then those registered."""
        return self._ask(asked.listing(owner), Voices).names

    def registered_voices(self, *, owner: str = "") -> tuple[RegisteredVoice, ...]:
        """The voices that were added, one's own and those that are shared, without what is said in them."""
        return tuple(map(asked.row, self._ask(asked.acting("list", owner=owner), VoiceList).voices))

    def add_voice(
        self,
        name: str,
        recording: Recording,
        text: str = "",
        *,
        shared: bool = False,
        replace: bool = False,
        owner: str = "",
    ) -> RegisteredVoice:
        """Adds a voice, to be asked for by `name` from then on.

        recording: 1 to 30 s of speech: an audio file's path, bytes or open binary file, at most 16 MiB.
        text: what is said in it; without, only its sound is taken, not its manner of speaking.
        shared: everybody may use it. replace: in the place of one of that name.

        Raises `InvalidInput` for a recording that cannot be used, `VoiceExists`, `QuotaExceeded`.
        """
        asking = asked.adding(name, recording, text, shared=shared, replace=replace, owner=owner)
        return asked.registered(self._ask(asking, VoiceDone, patient=True))

    def show_voice(self, name: str, *, owner: str = "") -> RegisteredVoice:
        """What is known of a voice."""
        return asked.registered(self._ask(asked.acting("show", name, owner=owner), VoiceDone))

    def rename_voice(self, name: str, to: str, *, owner: str = "") -> RegisteredVoice:
        """Calls a voice otherwise. Raises `VoiceExists`."""
        return asked.registered(self._ask(asked.acting("rename", name, to=to, owner=owner), VoiceDone))

    def remove_voice(self, name: str, *, owner: str = "") -> RegisteredVoice:
        """Removes a voice with all that is kept of it; requests that speak with it now are finished."""
        return asked.registered(self._ask(asked.acting("remove", name, owner=owner), VoiceDone))

    def export_voice(self, name: str, *, owner: str = "") -> bytes:
        """The content of a file that holds the voice, for `import_voice`."""
        return asked.exported(self._ask(asked.acting("export", name, owner=owner), VoiceDone))

    def import_voice(
        self,
        file: Content,
        name: str | None = None,
        *,
        shared: bool = False,
        replace: bool = False,
        owner: str = "",
    ) -> RegisteredVoice:
        """Adds the voice of an exported file, under the name it has there or another. Raises as `add_voice`."""
        voice = asked.read_file(file)
        return self.add_voice(
            name or voice.name, voice.recording, voice.text, shared=shared, replace=replace, owner=owner
        )

    @abstractmethod
    def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        """The answer to a question; `patient`: it may take as long as the beginning of a request."""
