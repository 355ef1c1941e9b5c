"""A store of voices in memory, and the answers that the keeper would give from it."""

from __future__ import annotations

from collections.abc import Callable

from lighttts.broker.voice_questions import Answer, Find, ListAll, Put, Question, Remove, Rename, Voiced
from lighttts.broker.voice_records import Room, VoiceRecord, use_of
from lighttts.broker.voice_store import Change, Shelves, VoiceStore
from lighttts.errors import LightTTSError

ROOM = Room(owned=3, owned_bytes=1000, all=5, all_bytes=2000)


class Shelf(VoiceStore):
    """Voices by id, with their recordings."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[VoiceRecord, bytes]] = {}

    def shelves(self, owner: str) -> Shelves:
        voices = [voice for voice, _ in self.kept.values()]
        own = {voice.name: voice for voice in voices if voice.owner == owner}
        shared = {voice.name: voice for voice in voices if voice.shared}
        return Shelves(own, shared, use_of({voice.id: voice for voice in voices if voice.owner != owner}))

    def recording(self, voice: VoiceRecord) -> bytes:
        return self.kept[voice.id][1]

    def change(self, owner: str, decide: Callable[[Shelves], Change]) -> Change:
        change = decide(self.shelves(owner))
        old = self.kept.pop(change.drop.id)[1] if change.drop else b""
        if change.put:
            self.kept[change.put.id] = (change.put, old if change.recording is None else change.recording)
        return change

    def close(self) -> None:
        """Nothing is held."""


def answer(shelf: VoiceStore, question: Question) -> Answer:
    """What the keeper answers."""
    try:
        return _done(shelf, question)
    except LightTTSError as error:
        return error


def _done(shelf: VoiceStore, question: Question) -> Voiced:
    match question:
        case Find(owner, name, recording):
            voice = shelf.find(owner, name)
            return Voiced((voice,), shelf.recording(voice) if recording else b"")
        case ListAll(owner):
            now = shelf.shelves(owner)
            return Voiced((*now.own.values(), *(v for v in now.shared.values() if v.owner != owner)))
        case Put(voice, content, over):
            old = shelf.put(voice, content, ROOM, over=over)
            return Voiced((voice, old) if old else (voice,))
        case Remove(owner, name):
            return Voiced((shelf.remove(owner, name),))
        case Rename(owner, name, to):
            return Voiced((shelf.rename(owner, name, to),))
