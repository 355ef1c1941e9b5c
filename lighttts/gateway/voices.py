"""Registered voices over HTTP: /v1/audio/voices, in the shape of OpenAI's API. A voice belongs to an API key."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.client import AsyncClient, RegisteredVoice
from lighttts.errors import ProtocolError, Unavailable, UnknownVoice
from lighttts.gateway.body import read_body, read_form, read_upload
from lighttts.gateway.connection import unless_gone
from lighttts.gateway.door import Door, Handler
from lighttts.gateway.failures import Refused
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.gateway.speech import Speaker, owner_of
from lighttts.voice_file import SUFFIX

VOICE_FIELDS = {"prompt": "audio_sample", "prompt_text": "text", "to": "name"}
PATH = "/v1/audio/voices"
_TRUE = {"true", "1", "on", "yes"}
_FALSE = {"false", "0", "off", "no"}
T = TypeVar("T")


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

    async def _list(self, request: Request, key: ApiKey | None) -> Response:
        owner = owner_of(key)
        names = await self._client.voices(owner=owner)
        try:
            registered = {voice.name: voice for voice in reversed(await self._client.registered_voices(owner=owner))}
        except (Unavailable, ProtocolError):
            # Those that are named are there all the same: preset ones, if the others cannot be had now.
            registered = {}
        preset: list[dict[str, object]] = [{"id": name, "name": name} for name in names if name not in registered]
        return JSONResponse({"voices": [*preset, *(_object(registered[name]) for name in names if name in registered)]})

    async def _add(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            name, text = _text(form, "name"), _text(form, "text", "")
            recording = await read_upload(form, "audio_sample")
            shared, over = _flag(form, "shared"), _flag(form, "replace")
        adding = self._client.add_voice(name, recording, text, shared=shared, replace=over, owner=owner_of(key))
        return _created(await self._done(request, "added", adding))

    async def _import(self, request: Request, key: ApiKey | None) -> Response:
        async with read_form(request) as form:
            name, file = _text(form, "name", ""), await read_upload(form, "file")
            shared, over = _flag(form, "shared"), _flag(form, "replace")
        adding = self._client.import_voice(file, name or None, shared=shared, replace=over, owner=owner_of(key))
        return _created(await self._done(request, "added", adding))

    async def _show(self, request: Request, key: ApiKey | None) -> Response:
        voice = await _known(self._client.show_voice(_name(request), owner=owner_of(key)))
        return JSONResponse(_object(voice))

    async def _rename(self, request: Request, key: ApiKey | None) -> Response:
        try:
            new = NewName.model_validate_json(await read_body(request)).name
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise Refused(400, "invalid_input", f"name: {first['msg']}", field="name") from None
        renaming = _known(self._client.rename_voice(_name(request), new, owner=owner_of(key)))
        return JSONResponse(_object(await self._done(request, "renamed", renaming)))

    async def _remove(self, request: Request, key: ApiKey | None) -> Response:
        removing = _known(self._client.remove_voice(_name(request), owner=owner_of(key)))
        voice = await self._done(request, "removed", removing)
        return JSONResponse({"id": voice.name, "object": "audio.voice", "deleted": True})

    async def _export(self, request: Request, key: ApiKey | None) -> Response:
        name = _name(request)
        content = await _known(self._client.export_voice(name, owner=owner_of(key)))
        file = f"attachment; filename*=UTF-8''{quote(name + SUFFIX, safe='')}"
        return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": file})

    async def _done(self, request: Request, what: str, work: Awaitable[RegisteredVoice]) -> RegisteredVoice:
        """What comes of a change, which is noted; nobody waits for it when the client has left."""
        voice = await unless_gone(request.receive, work)
        notes_of(request.scope).update(voice=voice.name, change=what)
        return voice


async def _known(work: Awaitable[T]) -> T:
    """Here a voice is what the path names: one that is not there is not found."""
    try:
        return await work
    except UnknownVoice as error:
        raise Refused(404, error.code, error.text, field=error.field) from error


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
