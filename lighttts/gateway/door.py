"""What all doors have in common: who may come in, and that whatever goes wrong is told in the door's own shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lighttts.gateway.connection import ClientGone
from lighttts.gateway.failures import Refused, Shape, failure_of
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.notes import notes_of

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

    def resource(self, path: str, handlers: Mapping[str, Handler]) -> Route:
        """A route to the handler of a request's method, which knows them all: `Allow` in a refusal names them."""

        async def handler(request: Request, key: ApiKey | None) -> Response:
            return await handlers["GET" if request.method == "HEAD" else request.method](request, key)

        return self.route(path, handler, *handlers)

    async def answer(self, request: Request, handler: Handler) -> Response:
        """The handler's answer, or what went wrong. Raises `ClientGone`."""
        try:
            return await handler(request, self.holder(request))
        except ClientGone:
            raise
        except Exception as error:
            return self.refusal(request, error)

    def refusal(self, connection: HTTPConnection, error: Exception) -> Response:
        """The answer to a request that failed."""
        failure = failure_of(error)
        notes_of(connection.scope).update(error=failure.code)
        return self._shape(replace(failure, field=self._fields.get(failure.field, failure.field)))

    def holder(self, connection: HTTPConnection) -> ApiKey | None:
        """Whose key the request has. Raises `Refused` with 401."""
        if self._keys is None:
            return None
        key = holder_of(self._keys, connection.headers.get("authorization", ""))
        notes_of(connection.scope).update(key=key.name)
        return key


def holder_of(keys: KeyRing, authorization: str) -> ApiKey:
    """Whose key an authorization header shows. Raises `Refused` with 401."""
    scheme, _, secret = authorization.partition(" ")
    key = keys.find(secret.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        text = "no valid API key: send one that this server knows as `Authorization: Bearer KEY`"
        raise Refused(401, "invalid_api_key", text)
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
