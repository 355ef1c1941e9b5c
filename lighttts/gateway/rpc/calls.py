"""What all calls have in common: who may make them, their deadlines, one log line each, and how they fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from lighttts.gateway.body import BODY_S
from lighttts.gateway.door import holder_of
from lighttts.gateway.failures import Refused, failure_of
from lighttts.gateway.journal import request_id_of, trace_of
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.rpc.peers import Peers
from lighttts.gateway.rpc.protos import Service
from lighttts.gateway.rpc.statuses import metadata_of, status_of
from lighttts.logs import get_logger

DAY_S = 86_400.0
Handler = Callable[["Call"], Awaitable[None]]
"""Sends the messages of an answer: one, where the method has one."""


class Call:
    """A call under way, with requests of class `kind`. `key`: whose it is; `notes`: what its log line will say."""

    def __init__(self, context: Any, kind: Any, key: ApiKey | None, line: _Line) -> None:
        self.key = key
        self.notes = line.notes
        self._context = context
        self._kind = kind
        self._line = line

    @property
    def deadline(self) -> float | None:
        """Seconds until the client gives up, if it told when and that is not in days."""
        remaining: float | None = self._context.time_remaining()
        return None if remaining is None or remaining > DAY_S else max(0.001, remaining)

    async def request(self) -> Any:
        """The message of a call that has one. Raises `Refused`."""
        try:
            async with asyncio.timeout(BODY_S):
                message = await self.next_request()
        except TimeoutError as error:
            raise Refused(408, "timeout", f"the request was not complete after {BODY_S:g} s") from error
        if message is None:
            raise Refused(400, "invalid_input", "the call holds no request")
        return message

    async def next_request(self) -> Any | None:
        """The next message of a stream, None at its end. Raises `Refused` if it is none."""
        content = await self._context.read()
        if content is grpc.aio.EOF:
            return None
        try:
            return self._kind.FromString(content)
        except DecodeError as error:
            raise Refused(400, "invalid_input", f"this is no {self._kind.DESCRIPTOR.full_name}") from error

    async def send(self, message: Any) -> None:
        """Sends a message of the answer, when the client has room for it."""
        content = message.SerializeToString()
        if not self._line.begun:
            # Not before: a call without any metadata sent can be tried again by its client's library.
            await self._context.send_initial_metadata((("x-request-id", self._line.request_id),))
        self._line.count(content)
        await self._context.write(content)


class Calls:
    """Makes handlers of a service's methods. With `keys` only their holders come in. `proxies`: those whose word is
    taken for who a client is."""

    def __init__(self, keys: KeyRing | None, proxies: Iterable[str]) -> None:
        self._keys = keys
        self._peers = Peers(proxies)

    def handlers(
        self, service: Service, handlers: Mapping[str, Handler], fields: Mapping[str, str] = MappingProxyType({})
    ) -> Any:
        """All of `service` for a server; `handlers` by method.

        `fields`: what its requests call what the client library calls text, voice, prompt and so on.
        """
        made = {name: self._handler(service, name, handlers[name], fields) for name in service.methods}
        return grpc.method_handlers_generic_handler(service.name, made)

    def _handler(self, service: Service, name: str, handler: Handler, fields: Mapping[str, str]) -> Any:
        """On the wire a single message is a stream of one. As a stream it is read only after a look at the key."""
        kind = service.kinds[service.methods[name].input_type.name]
        path = f"/{service.name}/{name}"

        async def answer(_: Any, context: Any) -> None:
            peer = await self._peers.address(context.peer(), context.invocation_metadata() or ())
            line = _Line(path, context, peer)
            async with self._told(context, line, fields):
                await handler(Call(context, kind, self._holder(context, line), line))

        return grpc.stream_stream_rpc_method_handler(answer)

    def _holder(self, context: Any, line: _Line) -> ApiKey | None:
        if self._keys is None:
            return None
        key = holder_of(self._keys, _metadata(context).get("authorization", ""))
        line.notes.update(key=key.name)
        return key

    @asynccontextmanager
    async def _told(self, context: Any, line: _Line, fields: Mapping[str, str]) -> AsyncGenerator[None, None]:
        """Ends the call in the status of what goes wrong in between, and logs it."""
        trace = trace_of(_metadata(context).get("traceparent", ""))
        with structlog.contextvars.bound_contextvars(request_id=line.request_id, **trace):
            try:
                yield
                line.status = grpc.StatusCode.OK
            except asyncio.CancelledError:
                late = context.time_remaining() == 0
                line.status = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                line.notes.update(error="deadline_exceeded" if late else "client_gone")
                raise
            except Exception as error:
                failure = failure_of(error)
                failure = replace(failure, field=fields.get(failure.field, failure.field))
                line.status = status_of(failure)
                line.notes.update(error=failure.code)
                told = (*metadata_of(failure), ("x-request-id", line.request_id))
                await context.abort(line.status, failure.text, told)
            finally:
                line.write()


class _Line:
    """What is logged of one call."""

    def __init__(self, path: str, context: Any, peer: str) -> None:
        self.request_id = request_id_of(_metadata(context).get("x-request-id", ""))
        self.status = grpc.StatusCode.CANCELLED
        self.notes: dict[str, object] = {}
        self._path = path
        self._peer = peer
        self._began = time.monotonic()
        self._first: float | None = None
        self._bytes = 0

    @property
    def begun(self) -> bool:
        """Whether there has been any of the answer."""
        return self._first is not None

    def count(self, content: bytes) -> None:
        """Sees what is sent."""
        if self._first is None:
            self._first = time.monotonic() - self._began
        self._bytes += len(content)

    def write(self) -> None:
        """Logs it."""
        get_logger().info(
            "request",
            method="GRPC",
            path=self._path,
            status=self.status.name,
            complete=self.status is grpc.StatusCode.OK,
            bytes=self._bytes,
            first_byte_s=None if self._first is None else round(self._first, 4),
            seconds=round(time.monotonic() - self._began, 4),
            peer=self._peer,
            **self.notes,
        )


def _metadata(context: Any) -> dict[str, str]:
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
