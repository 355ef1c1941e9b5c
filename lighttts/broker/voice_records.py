"""Registered voices: what is kept of each, who may use which, and how many there may be. Pure.

A voice is named by its owner and its name: two owners may each have an "anna". Whoever asks for "anna" gets his own, or
else the one that somebody shares; no two of those that are shared have one name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgpack

from lighttts.errors import Forbidden, QuotaExceeded, UnknownVoice, VoiceExists
from lighttts.transport.wire import VoiceRow

Voices = Mapping[str, "VoiceRecord"]
"""By name."""


@dataclass(frozen=True)
class VoiceRecord:
    """One voice but for its recording, whose SHA-256 is `digest` and whose bytes are `size`; `created` in Unix time.

    `voice_key`: what its features were called when it was added (`Encoded.voice_key`).
    """

    owner: str
    name: str
    prompt_text: str
    shared: bool
    created: float
    size: int
    digest: str
    voice_key: str

    @property
    def row(self) -> VoiceRow:
        """As messages tell of it."""
        return VoiceRow(self.name, self.owner, self.shared, self.created, self.size, self.digest)

    @property
    def id(self) -> str:
        """What it is stored under: names are never part of a path or key."""
        return voice_id(self.owner, self.name)

    def packed(self) -> bytes:
        """As stores keep it."""
        fields = (self.owner, self.name, self.prompt_text, self.shared, self.created, self.size, self.digest)
        packed: bytes = msgpack.packb([*fields, self.voice_key])
        return packed

    def same_voice(self, other: VoiceRecord) -> bool:
        """Whether adding it once more changes nothing."""
        return replace(self, created=other.created, voice_key=other.voice_key) == other


class Room(NamedTuple):
    """How many voices there may be, and bytes of recordings: of one owner, and of all together."""

    owned: int
    owned_bytes: int
    all: int
    all_bytes: int


class Use(NamedTuple):
    """How many voices there are, and the bytes of their recordings."""

    voices: int = 0
    size: int = 0


def unpacked(content: bytes) -> VoiceRecord:
    """The record that `packed` made. Raises `ValueError`."""
    try:
        match msgpack.unpackb(content, max_array_len=8, max_map_len=0, max_ext_len=0):
            case [str(owner), str(name), str(text), bool(shared), float(at), int(size), str(digest), str(key)]:
                return VoiceRecord(owner, name, text, shared, at, size, digest, key)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError("it cannot be unpacked") from error
    raise ValueError("it has other fields")


def voice_id(owner: str, name: str) -> str:
    """What a voice is stored under."""
    return hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()


def digest_of(recording: bytes) -> str:
    """The SHA-256 of a recording, hexadecimal."""
    return hashlib.sha256(recording).hexdigest()


def use_of(voices: Voices) -> Use:
    """What these take."""
    return Use(len(voices), sum(voice.size for voice in voices.values()))


def admit(new: VoiceRecord, own: Voices, shared: Voices, others: Use, room: Room, *, over: bool) -> VoiceRecord | None:
    """Lets `new` in among its owner's voices, `over` one of its name if there is one; returns that one.

    `shared`: the shared voices of all; `others`: what the voices of other owners take. Raises `VoiceExists`,
    `QuotaExceeded`.
    """
    old = own.get(new.name)
    if old and not over and not old.same_voice(new):
        raise VoiceExists(f"there is a voice {new.name!r} already: replace it, or choose another name", field="name")
    if new.shared:
        _check_shared(new, shared)
    voices, size = use_of({**own, new.name: new})
    if voices > room.owned or size > room.owned_bytes:
        text = f"you may have {room.owned} voices and {room.owned_bytes >> 20} MiB of recordings: remove some first"
        raise QuotaExceeded(text)
    if voices + others.voices > room.all or size + others.size > room.all_bytes:
        raise QuotaExceeded(f"there is room for {room.all} voices and {room.all_bytes >> 20} MiB, which is used up")
    return old


def renamed(own: Voices, shared: Voices, old: str, new: str) -> tuple[VoiceRecord, VoiceRecord]:
    """The voice `old` before and after it is called `new`. Raises `UnknownVoice`, `Forbidden`, `VoiceExists`."""
    before = owned(own, shared, old)
    after = replace(before, name=new)
    if new in own:
        raise VoiceExists(f"there is a voice {new!r} already: remove it, or choose another name", field="to")
    if after.shared:
        _check_shared(after, shared)
    return before, after


def usable(own: Voices, shared: Voices, name: str) -> VoiceRecord:
    """The voice that `name` means. Raises `UnknownVoice`."""
    voice = own.get(name) or shared.get(name)
    if voice is None:
        raise UnknownVoice(f"there is no registered voice {name!r}: `voices` lists those there are", field="name")
    return voice


def owned(own: Voices, shared: Voices, name: str) -> VoiceRecord:
    """The voice that `name` means, to be changed. Raises `UnknownVoice`, or `Forbidden` if it is another's."""
    voice = own.get(name)
    if voice is None:
        usable(own, shared, name)
        raise Forbidden(f"the voice {name!r} belongs to another key, which shares it: only that may change it")
    return voice


def _check_shared(new: VoiceRecord, shared: Voices) -> None:
    namesake = shared.get(new.name)
    if namesake and namesake.owner != new.owner:
        raise VoiceExists(f"another key shares a voice {new.name!r}: choose another name", field="name")
