"""One log line a request, and the names by which it is found: its request id, and the trace that it belongs to."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lighttts.gateway.notes import notes_of
from lighttts.logs import get_logger

PATH_MAX = 200
CLIENT_GONE = 499
"""Status in the log of a request whose client left before there was an answer."""
_CLOSED_WELL = 1000
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class Journal:
    """Wraps an application. Every log line in between carries `request_id`, and `trace_id` if a trace was told
    (W3C Trace Context); the answer has the request id as X-Request-ID. Queries, texts and keys are not logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id", ""))
        line = _Line(scope, request_id)

        async def noted(message: Message) -> None:
            line.note(message)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, **trace_of(headers.get("traceparent", ""))):
            try:
                await self._app(scope, receive, noted)
            finally:
                line.write()


class _Line:
    """What is logged of one request."""

    def __init__(self, scope: Scope, request_id: str) -> None:
        self._scope = scope
        self._request_id = request_id
        self._began = time.monotonic()
        self._first: float | None = None
        self._status = CLIENT_GONE
        self._bytes = 0
        self._complete = False

    def note(self, message: Message) -> None:
        """Sees what is sent."""
        kind = message["type"].removeprefix("websocket.")
        if kind in ("http.response.start", "accept"):
            self._status = message.get("status", 101)
            message.setdefault("headers", [])
            MutableHeaders(scope=message).append("X-Request-ID", self._request_id)
        elif kind in ("http.response.body", "send"):
            self._bytes += len(message.get("body") or message.get("bytes") or b"")
            self._complete = kind == "http.response.body" and not message.get("more_body", False)
            if self._first is None:
                self._first = time.monotonic() - self._began
        elif kind == "close":
            self._complete = message.get("code", _CLOSED_WELL) == _CLOSED_WELL

    def write(self) -> None:
        """Logs it."""
        scope = self._scope
        client = scope.get("client")
        get_logger().info(
            "request",
            method=scope.get("method", "WEBSOCKET"),
            path=scope["path"][:PATH_MAX],
            status=self._status,
            complete=self._complete,
            bytes=self._bytes,
            first_byte_s=None if self._first is None else round(self._first, 4),
            seconds=round(time.monotonic() - self._began, 4),
            peer=client[0] if client else None,
            **notes_of(scope),
        )


def request_id_of(given: str) -> str:
    """The request id that a client gave, or a new one where it gave none that can be used."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def trace_of(traceparent: str) -> dict[str, str]:
    """What log lines say of the trace that a client told of, if it did."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return {"trace_id": match[1], "parent_id": match[2]} if match else {}
