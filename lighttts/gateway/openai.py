"""OpenAI's door: /v1/audio/speech and /v1/models."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.errors import LightTTSError
from lighttts.gateway.board import Board
from lighttts.gateway.body import read_body
from lighttts.gateway.connection import Streamed
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import MEDIA_TYPES
from lighttts.gateway.failures import Refused, failure_of, openai_content
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.speech import Speaker, Spoken, Wish

OPENAI_FIELDS = {"text": "input"}
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
        if asked.instructions:
            text = "the model that is served takes no instructions: leave them out"
            raise Refused(400, "unsupported", text, field="instructions")
        await self._check_model(asked.model)
        voice = asked.voice if isinstance(asked.voice, str) else asked.voice.id
        wish = Wish(asked.input, voice=voice, speed=asked.speed)
        spoken, first = await self._speaker.begin(request, wish, asked.response_format, key)
        if asked.stream_format == "audio":
            return Streamed(first, spoken.pieces, MEDIA_TYPES[asked.response_format], {})
        headers = {"Cache-Control": "no-cache"}
        return Streamed(_delta(first), _events(spoken), "text/event-stream", headers)

    async def _models(self, request: Request, key: ApiKey | None) -> Response:
        name = await self._board.model()
        return JSONResponse({"object": "list", "data": [_model_object(name)] if name else []})

    async def _model(self, request: Request, key: ApiKey | None) -> Response:
        name = request.path_params["model"]
        await self._check_model(name)
        return JSONResponse(_model_object(name))

    async def _check_model(self, name: str) -> None:
        served = await self._board.model()
        # Without a worker nobody knows the model: the broker then says what is wrong, or waits for one.
        if served and name not in (served, *OPENAI_MODELS):
            known = ", ".join((served, *OPENAI_MODELS))
            text = f"there is no model {name!r} here; what is served answers to: {known}"
            raise Refused(404, "model_not_found", text, field="model")


def _model_object(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lighttts"}


def _parsed(body: bytes) -> SpeechRequest:
    try:
        return SpeechRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        text = f"{field}: {first['msg']}" if field else first["msg"]
        raise Refused(400, "invalid_input", text, field=field) from None


def _delta(piece: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})


async def _events(spoken: Spoken) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(spoken.pieces) as pieces:
        try:
            async for piece in pieces:
                yield _delta(piece)
        except LightTTSError as error:
            yield _event({"type": "error", **openai_content(failure_of(error))})
            return
    # Texts become tokens behind the broker, which does not tell how many.
    usage = {"input_tokens": 0, "output_tokens": spoken.tokens, "total_tokens": spoken.tokens}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(content: dict[str, object]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
