"""The doors of ModelTC's LightTTS and of CosyVoice's FastAPI server: forms in, raw int16 samples out.

Both have /inference_zero_shot. A form of LightTTS may hold `stream`, `tts_model_name` and `speed`, one of CosyVoice
does not; what both then get is the same samples, as they are made. Failures carry both servers' names for the sentence.
"""

from __future__ import annotations

import math

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.gateway.board import Board
from lighttts.gateway.body import read_form, read_upload
from lighttts.gateway.connection import Streamed
from lighttts.gateway.door import Door
from lighttts.gateway.encoders import MEDIA_TYPES
from lighttts.gateway.failures import Refused
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.speech import Speaker, Wish

UPSTREAM_FIELDS = {"text": "tts_text", "voice": "spk_id", "prompt": "prompt_wav", "instruct": "instruct_text"}
DEFAULT_MODEL = "default"
_TRUTHS = {"true", "false", "t", "f", "1", "0", "on", "off", "yes", "no", "y", "n"}
"""What FastAPI takes for a truth value."""


class Upstream:
    """Answers as the servers do that LightTTS can stand in for."""

    def __init__(self, speaker: Speaker, board: Board) -> None:
        self._speaker = speaker
        self._board = board

    def routes(self, door: Door) -> list[Route]:
        """The paths of these doors."""
        return [
            door.route("/inference_zero_shot", self._zero_shot, "GET", "POST"),
            door.route("/inference_cross_lingual", self._cross_lingual, "GET", "POST"),
            door.route("/inference_sft", self._preset, "GET", "POST"),
            door.route("/inference_instruct", self._preset_instruct, "GET", "POST"),
            door.route("/inference_instruct2", self._instruct, "GET", "POST"),
            door.route("/query_tts_model", self._models, "GET", "POST"),
        ]

    async def _zero_shot(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            style = await self._style(_text(form, "tts_model_name", DEFAULT_MODEL))
            if _text(form, "stream", "false").lower() not in _TRUTHS:
                raise Refused(422, "invalid_input", "stream is neither true nor false", field="stream")
            wish = Wish(
                _text(form, "tts_text"),
                prompt=await read_upload(form, "prompt_wav"),
                prompt_text=_text(form, "prompt_text"),
                speed=_speed(form),
                style=style,
            )
        return await self._spoken(request, wish, key)

    async def _cross_lingual(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            wish = Wish(_text(form, "tts_text"), prompt=await read_upload(form, "prompt_wav"))
        return await self._spoken(request, wish, key)

    async def _preset(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            wish = Wish(_text(form, "tts_text"), voice=_text(form, "spk_id"))
        return await self._spoken(request, wish, key)

    async def _preset_instruct(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            wish = Wish(_text(form, "tts_text"), voice=_text(form, "spk_id"), instruct=_text(form, "instruct_text"))
        return await self._spoken(request, wish, key)

    async def _instruct(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            prompt = await read_upload(form, "prompt_wav")
            wish = Wish(_text(form, "tts_text"), prompt=prompt, instruct=_text(form, "instruct_text"))
        return await self._spoken(request, wish, key)

    async def _models(self, request: Request, key: ApiKey | None) -> Response:
        names = await self._board.styles() or (await self._board.model(),)
        return JSONResponse({"tts_models": [name for name in names if name]})

    async def _spoken(self, request: Request, wish: Wish, key: ApiKey | None) -> Response:
        spoken, first = await self._speaker.begin(request, wish, "pcm", key)
        return Streamed(first, spoken.pieces, MEDIA_TYPES["pcm"], {})

    async def _style(self, name: str) -> str:
        style = await self._board.style(name, (DEFAULT_MODEL,))
        if style is None:
            known = ", ".join((DEFAULT_MODEL, await self._board.model(), *await self._board.styles()))
            text = f"there is no model {name!r} here: ask for {known}"
            raise Refused(400, "model_not_found", text, field="tts_model_name")
        return style


def _text(form: FormData, name: str, default: str | None = None) -> str:
    value = form.get(name, default)
    if not isinstance(value, str) or not value:
        raise Refused(422, "invalid_input", f"{name} is missing: send it as a field of a form", field=name)
    return value


def _speed(form: FormData) -> float:
    try:
        speed = float(_text(form, "speed", "1"))
    except ValueError:
        speed = math.nan
    if not 0.5 <= speed <= 2.0:
        raise Refused(422, "invalid_input", "speed is no number from 0.5 to 2.0", field="speed")
    return speed
