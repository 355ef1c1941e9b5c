"""What all doors have in common: who may come in, and that whatever goes wrong is told in the door's own shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lighttts.errors import LightTTSError
from lighttts.gateway.connection import ClientGone
from lighttts.gateway.failures import Failure, Refused, Shape, failure_of
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of
from lighttts.logs import get_logger

Handler = Callable[[Request, ApiKey | None], Awaitable[Response]]
"""Answers a request of the holder of a key; None where the gateway has no keys."""


class Door:
    """Makes routes whose failures have one `shape`. With `keys` only their holders come in.

    `fields`: what the door calls what the client library calls text, voice, prompt and so on.
    """

    def __init__(self, keys: KeyRing | None, shape: Shape, fields: Mapping[str, str] = MappingProxyType({})) -> None:
        self._keys = keys
        self._shape = shape
        self._fields = fields

    def route(self, path: str, handler: Handler, *methods: str) -> Route:
        """A route to `handler`."""
        return Route(path, _Entrance(self, handler), methods=methods)

    async def answer(self, request: Request, handler: Handler) -> Response:
        """The handler's answer, or what went wrong. Raises `ClientGone`."""
        try:
            return await handler(request, self._holder(request))
        except ClientGone:
            raise
        except Exception as error:
            failure = _failure(error)
            notes_of(request.scope).update(error=failure.code)
            return self._shape(replace(failure, field=self._fields.get(failure.field, failure.field)))

    def _holder(self, request: Request) -> ApiKey | None:
        """Whose key the request has. Raises `Refused` with 401."""
        if self._keys is None:
            return None
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        key = self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            text = "no valid API key: send one that this server knows as `Authorization: Bearer KEY`"
            raise Refused(401, "invalid_api_key", text)
        notes_of(request.scope).update(key=key.name)
        return key


class _Entrance:
    """A handler as an ASGI application."""

    def __init__(self, door: Door, handler: Handler) -> None:
        self._door = door
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._door.answer(Request(scope, receive), self._handler)
            await response(scope, receive, send)
        except ClientGone:
            notes_of(scope).update(error="client_gone")


def _failure(error: Exception) -> Failure:
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, LightTTSError):
        return failure_of(error)
    if isinstance(error, HTTPException):
        return failure_of_http(error)
    get_logger().error("request failed", exc_info=error)
    return Failure(500, "internal", "a defect of this server: its log tells more")


def failure_of_http(error: HTTPException) -> Failure:
    """What the framework refuses: unknown paths and methods, and forms it cannot read."""
    codes = {404: "not_found", 405: "method_not_allowed"}
    return Failure(error.status_code, codes.get(error.status_code, "invalid_input"), error.detail)
