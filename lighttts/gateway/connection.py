"""The client's end of an HTTP connection: what is done for it ends when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import NoReturn, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lighttts.errors import LightTTSError
from lighttts.logs import get_logger

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed its connection before the answer was complete."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` returns; cancels it and raises `ClientGone` when the client leaves first."""
    return await unless(_gone(receive), work)


async def unless(reason: Awaitable[NoReturn], work: Awaitable[T]) -> T:
    """What `work` returns; cancels it when `reason` raises something first, and raises that."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(reason)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else watching.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class Streamed(Response):
    """Sends `first`, then `pieces` as they come. Closes `pieces` however it ends.

    When they end in an error there is no status left to tell it by: the body is left incomplete and the connection is
    closed, so that no client takes what it has for the whole.
    """

    def __init__(
        self, first: bytes, pieces: AsyncGenerator[bytes, None], media_type: str, headers: Mapping[str, str]
    ) -> None:
        self._first = first
        self._pieces = pieces
        super().__init__(None, 200, headers, media_type)
        # The length is not known yet.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of it."""
        try:
            await unless_gone(receive, self._send(send))
        except LightTTSError as error:
            get_logger().warning("speech broke off", code=error.code, reason=error.text)
        finally:
            await self._pieces.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
