"""What a caller asks for, checked and made into a `Synth` message before anything is sent."""

from __future__ import annotations

import math
import os
import secrets
import uuid
from pathlib import Path
from typing import BinaryIO, Literal

from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport.wire import MAX_AUDIO_FILE, Synth, encode

Output = Literal["audio", "mel", "tokens"]
SampleFormat = Literal["f32", "s16"]
Prompt = bytes | str | os.PathLike[str] | BinaryIO


def make_synth(
    text: str,
    *,
    voice: str | None,
    prompt: Prompt | None,
    prompt_text: str,
    instruct: str,
    seed: int | None,
    speed: float,
    output: Output,
    format: SampleFormat,
    deadline: float | None,
) -> Synth:
    """The message for one request, under a new id, with a random seed if there is none; credit is filled in later.

    An empty voice and prompt stand for the broker's first preset voice. Raises `InvalidInput` naming the field.
    """
    if voice is not None and prompt is not None:
        raise InvalidInput("give a voice or a prompt, not both", field="voice")
    if prompt is None and prompt_text:
        raise InvalidInput("prompt_text says what is spoken in a prompt: give the prompt too", field="prompt_text")
    if instruct and prompt_text:
        raise InvalidInput("give an instruct or a prompt_text, not both", field="instruct")
    synth = Synth(
        request_id=uuid.uuid4().hex,
        text=_checked_text(text),
        voice=voice or "",
        prompt_text=_checked_unicode(prompt_text, "prompt_text"),
        seed=secrets.randbits(63) if seed is None else seed,
        speed=speed,
        output=output,
        sample_type=format,
        deadline_ms=_milliseconds(deadline),
        credit=0,
        prompt=b"" if prompt is None else read_prompt(prompt),
        instruct=_checked_unicode(instruct, "instruct"),
    )
    try:
        encode(synth)
    except ProtocolError as error:
        raise InvalidInput(error.text.removeprefix("Synth."), field=error.field) from None
    return synth


def read_prompt(prompt: Prompt) -> bytes:
    """The bytes of a prompt given as bytes, path or open file. Raises `InvalidInput`."""
    if isinstance(prompt, bytes):
        content = prompt
    elif isinstance(prompt, str | os.PathLike):
        try:
            with Path(prompt).open("rb") as file:
                content = file.read(MAX_AUDIO_FILE + 1)
        except OSError as error:
            raise InvalidInput(
                f"prompt {os.fspath(prompt)} cannot be read: {error.strerror}", field="prompt"
            ) from error
    else:
        content = prompt.read(MAX_AUDIO_FILE + 1)
    if not content:
        raise InvalidInput("the prompt is empty: give an audio file", field="prompt")
    if len(content) > MAX_AUDIO_FILE:
        limit = MAX_AUDIO_FILE >> 20
        raise InvalidInput(f"the prompt is larger than {limit} MiB: a few seconds of speech are enough", field="prompt")
    return content


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
