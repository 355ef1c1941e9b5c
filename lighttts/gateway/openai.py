"""OpenAI's door: /v1/audio/speech and /v1/models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.gateway.board import Board
from lighttts.gateway.body import read_body
from lighttts.gateway.connection import Streamed
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import MEDIA_TYPES
from lighttts.gateway.failures import Refused, invalid
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.speech import Speaker, Wish
from lighttts.gateway.sse import event_stream

OPENAI_FIELDS = {"text": "input", "instruct": "instructions", "source": "file"}
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that programs written for OpenAI ask for: they get the model that is served."""


class VoiceId(BaseModel):
    """A voice as an object."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=128)]


class SpeechRequest(BaseModel):
    """The body of /v1/audio/speech."""

    model_config = ConfigDict(extra="forbid")

    input: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(max_length=128)]
    voice: Annotated[str, Field(min_length=1, max_length=128)] | VoiceId
    instructions: Annotated[str, Field(max_length=4096)] | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"


class OpenAI:
    """Answers as OpenAI's API does."""

    def __init__(self, speaker: Speaker, board: Board) -> None:
        self._speaker = speaker
        self._board = board

    def routes(self, door: Door) -> list[Route]:
        """The paths of this door."""
        return [
            door.route("/v1/audio/speech", self._speech, "POST"),
            door.route("/v1/models", self._models, "GET"),
            door.route("/v1/models/{model}", self._model, "GET"),
        ]

    async def _speech(self, request: Request, key: ApiKey | None) -> Response:
        asked = _parsed(await read_body(request))
        style = await style_of(self._board, asked.model)
        voice = asked.voice if isinstance(asked.voice, str) else asked.voice.id
        instruct = (asked.instructions or "").strip()
        wish = Wish(asked.input, voice=voice, speed=asked.speed, instruct=instruct, style=style)
        spoken, first = await self._speaker.begin(request, wish, asked.response_format, key)
        if asked.stream_format == "audio":
            return Streamed(first, spoken.pieces, MEDIA_TYPES[asked.response_format], {})
        return event_stream(spoken, first)

    async def _models(self, request: Request, key: ApiKey | None) -> Response:
        names = (await self._board.model(), *await self._board.styles())
        return JSONResponse({"object": "list", "data": [_model_object(name) for name in names if name]})

    async def _model(self, request: Request, key: ApiKey | None) -> Response:
        name = request.path_params["model"]
        await style_of(self._board, name)
        return JSONResponse(_model_object(name))


async def style_of(board: Board, name: str) -> str:
    """The style that model `name` is, "" for the default. Raises `Refused` with 404 if there is no such model."""
    style = await board.style(name, OPENAI_MODELS)
    if style is None:
        known = ", ".join((await board.model(), *await board.styles(), *OPENAI_MODELS))
        text = f"there is no model {name!r} here; what is served answers to: {known}"
        raise Refused(404, "model_not_found", text, field="model")
    return style


def _model_object(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lighttts"}


def _parsed(body: bytes) -> SpeechRequest:
    try:
        return SpeechRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
