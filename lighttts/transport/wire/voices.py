"""Voices: what can be asked for, and how voices are registered, shown, listed and removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from lighttts.transport.schema import U32, U63, Bool, Flag, Float, Int, Many, OneOf, Record, Text
from lighttts.transport.wire.fields import AudioFile, Digest, Line, Name, Names, Owner, VoiceName
from lighttts.transport.wire.limits import MAX_AUDIO_FILE, MAX_REGISTERED, MAX_VOICE_KEYS
from lighttts.transport.wire.message import Message, Since, tagged

VOICE_ACTIONS = ("show", "export", "rename", "remove", "list")


@tagged(0x15)
@dataclass(frozen=True, slots=True, eq=False)
class ListVoices(Message):
    """Answered by `Voices` with the same `query_id`. `owner`: see `AddVoice`."""

    query_id: U63
    owner: Annotated[str, Owner, Since(3)] = ""


@tagged(0x24)
@dataclass(frozen=True, slots=True, eq=False)
class Voices(Message):
    """The voices that can be asked for now: first the preset ones, then those registered that the client may use."""

    query_id: U63
    sample_rate: U32
    names: Names


@tagged(0x1C, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class AddVoice(Message):
    """Registers a voice: `prompt`, an audio file, and what is said in it, `prompt_text`, which may be empty. Answered
    by `VoiceDone` or `VoiceFailed`. It belongs to the client's key; `shared`: all may use it. `replace`: in the place
    of one of that name. A gateway says in `owner` whose it is of those it serves; where keys are used, only the keys
    named in `broker.gateways` may."""

    query_id: U63
    owner: Annotated[str, Owner]
    name: VoiceName
    prompt_text: Line
    shared: Flag
    replace: Flag
    prompt: AudioFile


@tagged(0x1D, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceAction(Message):
    """Asks of a registered voice what `action` says. Answered by `VoiceDone` (by `VoiceList` for `list`, which needs no
    `name`), or by `VoiceFailed`. `to`: the new name for `rename`, else empty. `owner`: see `AddVoice`."""

    query_id: U63
    owner: Annotated[str, Owner]
    action: Annotated[str, OneOf(VOICE_ACTIONS)]
    name: Name
    to: Name


class VoiceRow(NamedTuple):
    """A registered voice: whose it is, when it was added (Unix time), its recording's bytes and their SHA-256."""

    name: str
    owner: str
    shared: bool
    created: float
    size: int
    digest: str


_VOICE_ROW = Record(
    (Text(128, low=1), Text(128), Bool(), Float(0, 1e12), Int(0, MAX_AUDIO_FILE), Text(64, low=1)), VoiceRow
)


@tagged(0x27, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceDone(Message):
    """What was asked of a registered voice is done: `voice` is what it is now, or was. `prompt`: its recording, for
    `export` only."""

    query_id: U63
    voice: Annotated[VoiceRow, _VOICE_ROW]
    prompt_text: Line
    prompt: AudioFile


@tagged(0x28, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceList(Message):
    """The registered voices that the client may use: its own, then those of others that are shared."""

    query_id: U63
    voices: Annotated[tuple[VoiceRow, ...], Many(_VOICE_ROW, MAX_REGISTERED)]


@tagged(0x29, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceFailed(Message):
    """A question about voices has no other answer than a typed error, as in `Error`."""

    query_id: U63
    code: Name
    text: Line
    field: Name
    retryable: Flag
    retry_after_ms: U32


@tagged(0x5F, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Forget(Message):
    """A voice was removed: an encode worker drops what it keeps of the recording with SHA-256 `digest`, a decode worker
    what it keeps of voices with these `voice_keys`, as soon as no request needs it. Not answered."""

    digest: Digest
    voice_keys: Annotated[tuple[str, ...], Many(Text(128), MAX_VOICE_KEYS)]
