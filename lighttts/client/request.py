"""What a caller asks for, checked and made into a `Synth` or `Convert` message before anything is sent."""

from __future__ import annotations

import math
import os
import secrets
import uuid
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport.wire import MAX_AUDIO_FILE, Convert, Message, Synth, encode

Output = Literal["audio", "mel", "tokens"]
Decoded = Literal["audio", "mel"]
SampleFormat = Literal["f32", "s16"]
Recording = bytes | str | os.PathLike[str] | BinaryIO
"""An audio file: its bytes, its path, or it opened."""
Method = Literal["auto", "sentences", "interleaved"]
"""How text is spoken that comes in pieces."""
M = TypeVar("M", bound=Message)


def make_synth(
    text: str,
    *,
    voice: str | None,
    prompt: Recording | None,
    prompt_text: str,
    instruct: str,
    style: str,
    seed: int | None,
    speed: float,
    output: Output,
    format: SampleFormat,
    deadline: float | None,
    owner: str = "",
    pieces: Method | Literal[""] = "",
) -> Synth:
    """The message for one request, under a new id, with a random seed if there is none; credit is filled in later.

    With `pieces` the text comes later, and `text` is empty.

    An empty voice and prompt stand for the broker's first preset voice. Raises `InvalidInput` naming the field.
    """
    _check_voice(voice, prompt)
    if prompt is None and prompt_text:
        raise InvalidInput("prompt_text says what is spoken in a prompt: give the prompt too", field="prompt_text")
    if instruct and prompt_text:
        raise InvalidInput("give an instruct or a prompt_text, not both", field="instruct")
    synth = Synth(
        request_id=uuid.uuid4().hex,
        text="" if pieces else _checked_text(text),
        voice=voice or "",
        prompt_text=_checked_unicode(prompt_text, "prompt_text"),
        seed=secrets.randbits(63) if seed is None else seed,
        speed=speed,
        output=output,
        sample_type=format,
        deadline_ms=_milliseconds(deadline),
        credit=0,
        prompt=b"" if prompt is None else read_audio(prompt, "prompt"),
        instruct=_checked_unicode(instruct, "instruct"),
        style=_checked_unicode(style, "style"),
        owner=owner,
        pieces=pieces,
    )
    return encodable(synth)


def make_convert(
    source: Recording,
    *,
    voice: str | None,
    prompt: Recording | None,
    seed: int | None,
    speed: float,
    output: Decoded,
    format: SampleFormat,
    deadline: float | None,
    owner: str = "",
) -> Convert:
    """As `make_synth`, for a conversion of `source`."""
    _check_voice(voice, prompt)
    convert = Convert(
        request_id=uuid.uuid4().hex,
        voice=voice or "",
        seed=secrets.randbits(63) if seed is None else seed,
        speed=speed,
        output=output,
        sample_type=format,
        deadline_ms=_milliseconds(deadline),
        credit=0,
        prompt=b"" if prompt is None else read_audio(prompt, "prompt"),
        source=read_audio(source, "source"),
        owner=owner,
    )
    return encodable(convert)


def read_audio(recording: Recording, field: str) -> bytes:
    """The bytes of a recording given for `field`. Raises `InvalidInput`."""
    if isinstance(recording, bytes):
        content = recording
    elif isinstance(recording, str | os.PathLike):
        try:
            with Path(recording).open("rb") as file:
                content = file.read(MAX_AUDIO_FILE + 1)
        except OSError as error:
            raise InvalidInput(
                f"{field} {os.fspath(recording)} cannot be read: {error.strerror}", field=field
            ) from error
    else:
        content = recording.read(MAX_AUDIO_FILE + 1)
    if not content:
        raise InvalidInput(f"the {field} is empty: give an audio file", field=field)
    if len(content) > MAX_AUDIO_FILE:
        limit = MAX_AUDIO_FILE >> 20
        raise InvalidInput(
            f"the {field} is larger than {limit} MiB: no more than 30 s of speech are taken", field=field
        )
    return content


def encodable(message: M) -> M:
    """The message, if it can be sent. Raises `InvalidInput` naming the field that is out of its limits."""
    try:
        encode(message)
    except ProtocolError as error:
        text = error.text.removeprefix(f"{type(message).__name__}.")
        raise InvalidInput(text, field=error.field) from None
    return message


def _check_voice(voice: str | None, prompt: Recording | None) -> None:
    if voice is not None and prompt is not None:
        raise InvalidInput("give a voice or a prompt, not both", field="voice")


def checked_piece(text: str) -> str:
    """A piece of text. Raises `InvalidInput`."""
    return _checked_unicode(text, "text")


def _checked_text(text: str) -> str:
    if not text.strip():
        raise InvalidInput("the text is empty: give at least one word", field="text")
    return _checked_unicode(text, "text")


def _checked_unicode(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{field} is not valid Unicode: it must be UTF-8 where it comes from", field=field) from None
    return text


def _milliseconds(deadline: float | None) -> int:
    if deadline is None:
        return 0
    if not 0 < deadline < math.inf:
        raise InvalidInput("the deadline must be a number of seconds above 0", field="deadline")
    return math.ceil(deadline * 1000)
