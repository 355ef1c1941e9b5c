"""The gateway as an ASGI application: all doors for HTTP, around one connection to the broker."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from lighttts.client import AsyncClient
from lighttts.gateway import page
from lighttts.gateway.board import Board
from lighttts.gateway.conversions import Conversions
from lighttts.gateway.door import Door
from lighttts.gateway.failures import failure_of, openai_error, problem, upstream_problem
from lighttts.gateway.health import Health
from lighttts.gateway.journal import Journal
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.openai import OPENAI_FIELDS, OpenAI
from lighttts.gateway.openapi import document
from lighttts.gateway.quotas import Quotas
from lighttts.gateway.speech import Speaker
from lighttts.gateway.talk import Talk
from lighttts.gateway.upstream import UPSTREAM_FIELDS, Upstream
from lighttts.gateway.voices import VOICE_FIELDS, VoiceDoor

OPENAI_PATHS = "/v1/"
CORS_HEADERS = ("Authorization", "Content-Type", "X-Request-ID", "traceparent")
CORS_EXPOSED = ("X-Request-ID", "Retry-After")


def make_routes(
    client: AsyncClient, quotas: Quotas, keys: KeyRing | None, origins: tuple[str, ...] = ()
) -> list[BaseRoute]:
    """All doors for HTTP, around `client`."""
    board = Board(client)
    speaker = Speaker(client, quotas)
    open_door = Door(None, problem)
    openai_door = Door(keys, openai_error, OPENAI_FIELDS)
    return [
        *OpenAI(speaker, board).routes(openai_door),
        *Conversions(speaker, board).routes(openai_door),
        *VoiceDoor(client, speaker).routes(Door(keys, openai_error, VOICE_FIELDS)),
        *Upstream(speaker, board).routes(Door(keys, upstream_problem, UPSTREAM_FIELDS)),
        *Talk(speaker, board, origins).routes(Door(keys, problem)),
        *Health(board).routes(open_door, Door(keys, problem)),
        open_door.route("/openapi.json", _openapi, "GET"),
        *page.routes(open_door),
    ]


def make_app(client: AsyncClient, quotas: Quotas, keys: KeyRing | None, origins: tuple[str, ...]) -> ASGIApp:
    """The application. `origins`: the pages of other origins that may use it."""
    return Journal(
        Starlette(
            routes=make_routes(client, quotas, keys, origins),
            middleware=_middleware(origins),
            exception_handlers={HTTPException: _refuse},
        )
    )


async def _openapi(request: Request, key: ApiKey | None) -> Response:
    return JSONResponse(document())


def _middleware(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PATCH", "DELETE"),
        allow_headers=CORS_HEADERS,
        expose_headers=CORS_EXPOSED,
    )
    return [cors]


async def _refuse(request: Request, error: Exception) -> Response:
    """What no route takes."""
    shape = openai_error if request.url.path.startswith(OPENAI_PATHS) else problem
    response = shape(failure_of(error))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response
