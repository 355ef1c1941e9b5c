"""Where registered voices are kept: what every such place can do. Calls may wait for it, so none is for the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from lighttts.broker.voice_records import Room, Use, VoiceRecord, Voices, admit, owned, renamed, usable


class Shelves(NamedTuple):
    """What is kept: an owner's voices, those that anybody shares, and what the voices of the other owners take."""

    own: Voices
    shared: Voices
    others: Use


class Change(NamedTuple):
    """A voice that goes, one that comes, or one in the place of the other. No `recording`: that of `drop` stays."""

    drop: VoiceRecord | None
    put: VoiceRecord | None
    recording: bytes | None = None


class VoiceStore(ABC):
    """Voices by owner and name. Every call raises `Unavailable` when the place cannot be reached.

    A change is made wholly or not at all, also where several brokers make changes at once.
    """

    @abstractmethod
    def shelves(self, owner: str) -> Shelves:
        """What is kept now."""

    @abstractmethod
    def recording(self, voice: VoiceRecord) -> bytes:
        """The recording of a voice; empty if it has been changed or is lost."""

    @abstractmethod
    def change(self, owner: str, decide: Callable[[Shelves], Change]) -> Change:
        """Makes the change to the voices of `owner` that `decide` makes of what is kept; it may be asked several
        times, and whatever it raises is raised."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the place."""

    def find(self, owner: str, name: str) -> VoiceRecord:
        """The voice that `name` means for `owner`. Raises `UnknownVoice`."""
        shelves = self.shelves(owner)
        return usable(shelves.own, shelves.shared, name)

    def put(self, new: VoiceRecord, recording: bytes, room: Room, *, over: bool) -> VoiceRecord | None:
        """Keeps a voice; returns the one it takes the place of. Raises `VoiceExists`, `QuotaExceeded`."""

        def decide(now: Shelves) -> Change:
            return Change(admit(new, now.own, now.shared, now.others, room, over=over), new, recording)

        return self.change(new.owner, decide).drop

    def remove(self, owner: str, name: str) -> VoiceRecord:
        """Removes a voice; returns what it was. Raises `UnknownVoice`, `Forbidden`."""
        dropped = self.change(owner, lambda now: Change(owned(now.own, now.shared, name), None)).drop
        assert dropped is not None
        return dropped

    def rename(self, owner: str, old: str, new: str) -> VoiceRecord:
        """Renames a voice; returns what it is now. Raises `UnknownVoice`, `Forbidden`, `VoiceExists`."""
        put = self.change(owner, lambda now: Change(*renamed(now.own, now.shared, old, new))).put
        assert put is not None
        return put
