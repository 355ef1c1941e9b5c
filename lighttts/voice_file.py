"""A voice as one file (`.ltv`): its name, its recording and what is said in it; and what a voice may be called.

    "lighttts-voice 1\\n"   16 + 1 bytes
    SHA-256                 32 bytes, of all that follows
    msgpack array           [name, text, recording]

Nothing in it is executed or used as a path, and every size is checked before it is taken in.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import msgpack

from lighttts.errors import InvalidInput
from lighttts.transport.wire import MAX_AUDIO_FILE

SUFFIX = ".ltv"
NAME_BYTES = 128
TEXT_BYTES = 4096
MAX_FILE_BYTES = MAX_AUDIO_FILE + TEXT_BYTES + NAME_BYTES + 128

_MAGIC = b"lighttts-voice 1\n"
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size
_UNFIT = re.compile(r"[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class VoiceFile(NamedTuple):
    """A voice by itself: without owner, and of no model."""

    name: str
    text: str
    recording: bytes

    def packed(self) -> bytes:
        """The file's content."""
        body: bytes = msgpack.packb([self.name, self.text, self.recording])
        return _MAGIC + hashlib.sha256(body).digest() + body


def read_voice_file(content: bytes) -> VoiceFile:
    """The voice in a file's content. Raises `InvalidInput` for whatever is not exactly one."""
    if len(content) > MAX_FILE_BYTES:
        raise _refused(f"has more than {MAX_FILE_BYTES} bytes, which no voice has")
    if not content.startswith(_MAGIC):
        raise _refused("is no voice that LightTTS has exported")
    body = content[_HEAD:]
    if hashlib.sha256(body).digest() != content[len(_MAGIC) : _HEAD]:
        raise _refused("is damaged: its checksum is wrong")
    try:
        fields = msgpack.unpackb(body, max_array_len=3, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise _refused("is damaged: it cannot be unpacked") from error
    match fields:
        case [str(name), str(text), bytes(recording)]:
            check_name(name)
            check_text(text)
            if not 0 < len(recording) <= MAX_AUDIO_FILE:
                raise _refused("has no recording, or one that is too long")
            return VoiceFile(name, text, recording)
    raise _refused("does not hold a name, a text and a recording")


def check_name(name: str, field: str = "name") -> None:
    """Raises `InvalidInput` if no voice may be called so; `field` of the request says it."""
    if not name.strip() or name != name.strip() or name in (".", "..") or _UNFIT.search(name):
        text = "a voice's name has at least one character, no slash or control character, and no space at its ends"
        raise InvalidInput(text, field=field)
    if len(name.encode()) > NAME_BYTES:
        raise InvalidInput(f"a voice's name has at most {NAME_BYTES} bytes", field=field)


def check_text(text: str) -> None:
    """Raises `InvalidInput` if it is more than can be said in a recording."""
    if len(text.encode(errors="replace")) > TEXT_BYTES:
        text = f"the recording's text has more than {TEXT_BYTES} bytes: give just what is said in it"
        raise InvalidInput(text, field="prompt_text")


def _refused(what: str) -> InvalidInput:
    return InvalidInput(f"the voice file {what}", field="file")
