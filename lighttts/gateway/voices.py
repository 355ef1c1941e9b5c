"""Registered voices over HTTP: /v1/audio/voices, in the shape of OpenAI's API. A voice belongs to an API key."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.client import AsyncClient, RegisteredVoice
from lighttts.gateway.body import read_body, read_form, read_upload
from lighttts.gateway.connection import unless_gone
from lighttts.gateway.door import Door, Handler
from lighttts.gateway.failures import Refused
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.gateway.own_voices import OwnVoices
from lighttts.gateway.speech import Speaker
from lighttts.voice_file import SUFFIX

VOICE_FIELDS = {"prompt": "audio_sample", "prompt_text": "text", "to": "name"}
PATH = "/v1/audio/voices"
_TRUE = {"true", "1", "on", "yes"}
_FALSE = {"false", "0", "off", "no"}


class NewName(BaseModel):
    """The body of a PATCH."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=128)]


class VoiceDoor:
    """Voices of the holders of keys, and those that are shared; where the gateway has no keys, everybody's."""

    def __init__(self, client: AsyncClient, speaker: Speaker) -> None:
        self._client = client
        self._speaker = speaker

    def routes(self, door: Door) -> list[Route]:
        """The paths of this door."""
        return [
            door.resource(PATH, {"GET": self._list, "POST": self._counted(self._add)}),
            door.route(f"{PATH}/import", self._counted(self._import), "POST"),
            door.resource(
                f"{PATH}/{{name}}",
                {"GET": self._show, "PATCH": self._counted(self._rename), "DELETE": self._counted(self._remove)},
            ),
            door.route(f"{PATH}/{{name}}/export", self._counted(self._export), "GET"),
        ]

    def _counted(self, handler: Handler) -> Handler:
        """What makes work for others counts as a request of its key."""

        async def handle(request: Request, key: ApiKey | None) -> Response:
            with self._speaker.admitted(key):
                return await handler(request, key)

        return handle

    def _of(self, request: Request, key: ApiKey | None) -> OwnVoices:
        return OwnVoices(self._client, key, notes_of(request.scope))

    async def _list(self, request: Request, key: ApiKey | None) -> Response:
        listed = await self._of(request, key).all()
        preset: list[dict[str, object]] = [{"id": name, "name": name} for name in listed.preset]
        return JSONResponse({"voices": [*preset, *map(_object, listed.registered)]})

    async def _add(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            name, text = _text(form, "name"), _text(form, "text", "")
            recording = await read_upload(form, "audio_sample")
            shared, over = _flag(form, "shared"), _flag(form, "replace")
        adding = self._of(request, key).add(name, recording, text, shared=shared, replace=over)
        return _created(await unless_gone(request.receive, adding))

    async def _import(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            name, file = _text(form, "name", ""), await read_upload(form, "file")
            shared, over = _flag(form, "shared"), _flag(form, "replace")
        adding = self._of(request, key).add_file(file, name, shared=shared, replace=over)
        return _created(await unless_gone(request.receive, adding))

    async def _show(self, request: Request, key: ApiKey | None) -> Response:
        return JSONResponse(_object(await self._of(request, key).show(_name(request))))

    async def _rename(self, request: Request, key: ApiKey | None) -> Response:
        try:
            new = NewName.model_validate_json(await read_body(request)).name
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise Refused(400, "invalid_input", f"name: {first['msg']}", field="name") from None
        renaming = self._of(request, key).rename(_name(request), new)
        return JSONResponse(_object(await unless_gone(request.receive, renaming)))

    async def _remove(self, request: Request, key: ApiKey | None) -> Response:
        voice = await unless_gone(request.receive, self._of(request, key).remove(_name(request)))
        return JSONResponse({"id": voice.name, "object": "audio.voice", "deleted": True})

    async def _export(self, request: Request, key: ApiKey | None) -> Response:
        name = _name(request)
        content = await self._of(request, key).export(name)
        file = f"attachment; filename*=UTF-8''{quote(name + SUFFIX, safe='')}"
        return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": file})


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


def _created(voice: RegisteredVoice) -> Response:
    return JSONResponse(_object(voice), 201)


def _object(voice: RegisteredVoice) -> dict[str, object]:
    told: dict[str, object] = {
        "id": voice.name,
        "name": voice.name,
        "object": "audio.voice",
        "created_at": int(voice.created),
        "owner": voice.owner,
        "shared": voice.shared,
        "bytes": voice.size,
        "sha256": voice.digest,
    }
    return {**told, "text": voice.text} if voice.text else told


def _text(form: FormData, name: str, default: str | None = None) -> str:
    value = form.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise Refused(400, "invalid_input", f"{name} is missing: send it as a field of a multipart form", field=name)
    return value


def _flag(form: FormData, name: str) -> bool:
    said = _text(form, name, "false").lower()
    if said not in _TRUE | _FALSE:
        raise Refused(400, "invalid_input", f"{name} is neither true nor false", field=name)
    return said in _TRUE
