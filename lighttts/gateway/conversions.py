"""/v1/audio/conversions: a recording said again in another voice. Ours, in the manner of OpenAI's audio endpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lighttts.gateway.board import Board
from lighttts.gateway.body import read_form, read_upload
from lighttts.gateway.connection import Streamed
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import MEDIA_TYPES
from lighttts.gateway.failures import invalid
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.openai import style_of
from lighttts.gateway.speech import Conversion, Speaker
from lighttts.gateway.sse import event_stream

_FILES = ("file", "prompt")


class ConversionForm(BaseModel):
    """The fields of /v1/audio/conversions beside its files."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=128)] = "tts-1"
    voice: Annotated[str, Field(max_length=128)] = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"


class Conversions:
    """Converts voices."""

    def __init__(self, speaker: Speaker, board: Board) -> None:
        self._speaker = speaker
        self._board = board

    def routes(self, door: Door) -> list[Route]:
        """The path of this door."""
        return [door.route("/v1/audio/conversions", self._convert, "POST")]

    async def _convert(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request, files=len(_FILES)) as form:
            try:
                asked = ConversionForm.model_validate(
                    {name: value for name, value in form.items() if name not in _FILES}
                )
            except ValidationError as error:
                raise invalid(error) from None
            source = await read_upload(form, "file")
            prompt = await read_upload(form, "prompt") if "prompt" in form else None
        await style_of(self._board, asked.model)
        wish = Conversion(source, voice=asked.voice, prompt=prompt, speed=asked.speed)
        spoken, first = await self._speaker.begin(request, wish, asked.response_format, key)
        if asked.stream_format == "sse":
            return event_stream(spoken, first)
        return Streamed(first, spoken.pieces, MEDIA_TYPES[asked.response_format], {})
