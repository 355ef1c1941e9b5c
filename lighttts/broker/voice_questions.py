"""What the core asks of the place where voices are kept, and what it is answered."""

from __future__ import annotations

from typing import NamedTuple

from lighttts.broker.voice_records import VoiceRecord
from lighttts.errors import LightTTSError


class Find(NamedTuple):
    """The voice that `name` means for `owner`, with its `recording` or without."""

    owner: str
    name: str
    recording: bool


class ListAll(NamedTuple):
    """The voices that `owner` may use."""

    owner: str


class Put(NamedTuple):
    """Keep a voice, `over` one of its name if there is one. The answer has that one too."""

    voice: VoiceRecord
    recording: bytes
    over: bool


class Remove(NamedTuple):
    """Remove a voice."""

    owner: str
    name: str


class Rename(NamedTuple):
    """Call a voice otherwise."""

    owner: str
    name: str
    to: str


Question = Find | ListAll | Put | Remove | Rename


class AskVoices(NamedTuple):
    """Ask; answered by `Core.voices_answered` with the same number."""

    number: int
    question: Question


class Voiced(NamedTuple):
    """What was asked for is done: the voices it is about."""

    voices: tuple[VoiceRecord, ...]
    recording: bytes = b""


Answer = Voiced | LightTTSError
