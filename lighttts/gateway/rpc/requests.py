"""What the messages of lighttts.proto ask for, in the words of the gateway."""

from __future__ import annotations

from typing import Any

from lighttts.gateway.failures import Refused
from lighttts.gateway.speech import Conversion, Wish

FORMATS = ("pcm", "pcm", "wav", "flac", "mp3", "opus", "aac")
"""By their numbers."""


def format_of(manner: Any) -> str:
    """The name of a format. Raises `Refused` for one that only newer clients know."""
    number: int = manner.format
    if number not in range(len(FORMATS)):
        raise Refused(400, "invalid_input", f"there is no format {number}", field="format")
    return FORMATS[number]


def wish_of(manner: Any, text: str = "", deadline: float | None = None) -> Wish:
    """What a text is to be spoken with."""
    return Wish(
        text,
        voice=manner.voice,
        prompt=manner.prompt or None,
        prompt_text=manner.prompt_text,
        instruct=manner.instruct,
        speed=manner.speed or 1.0,
        style=manner.style,
        deadline=deadline,
    )


def conversion_of(asked: Any, deadline: float | None) -> Conversion:
    """What a recording is to be made into. Raises `Refused`."""
    manner = asked.manner
    for field in ("prompt_text", "instruct", "style"):
        if getattr(manner, field):
            raise Refused(400, "invalid_input", f"a conversion takes no {field}", field=field)
    return Conversion(asked.source, manner.voice, manner.prompt or None, manner.speed or 1.0, deadline)


def audio_of(kind: Any, content: bytes, sample_rate: int) -> Any:
    """A piece of audio as a message."""
    return kind(content=content, sample_rate=sample_rate)
