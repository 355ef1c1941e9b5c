"""The services that tools and load balancers know: health (grpc.health.v1) and reflection. They need no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from lighttts.gateway.board import FRESH_S, Board
from lighttts.gateway.rpc.protos import POOL

REFLECTION_S = 30.0
"""Seconds that a client of reflection may ask nothing before its call ends."""

_STATUS = health_pb2.HealthCheckResponse


class Health:
    """Says of the server ("") and of each of `services` whether text can be spoken now."""

    def __init__(self, board: Board, services: Collection[str]) -> None:
        self._board = board
        self._services = {"", *services}
        self._stopping = asyncio.Event()

    def add_to(self, server: Any) -> None:
        """Adds the service to a server that has not been started."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def stop(self) -> None:
        """From now on nothing can be spoken: those who watch are told, and their calls end."""
        self._stopping.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of one service, now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return _STATUS(status=await self._status())

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The statuses of all."""
        status = _STATUS(status=await self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._services, status))

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The status of one service, and each change of it."""
        told = None
        while not self._stopping.is_set() or told is None:
            status = await self._status() if request.service in self._services else _STATUS.SERVICE_UNKNOWN
            if status != told:
                await context.write(_STATUS(status=status))
                told = status
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), FRESH_S)
        if told == _STATUS.SERVING:
            await context.write(_STATUS(status=_STATUS.NOT_SERVING))

    async def _status(self) -> int:
        serving = not self._stopping.is_set() and not await self._board.problem()
        status: int = _STATUS.SERVING if serving else _STATUS.NOT_SERVING
        return status


class Reflection:
    """Tells what services and messages there are, to clients that do not sit on an open call."""

    def __init__(self, services: Collection[str]) -> None:
        for generated in (health_pb2, reflection_pb2):
            POOL.AddSerializedFile(generated.DESCRIPTOR.serialized_pb)
        known = (*services, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        self._known = reflection.aio.ReflectionServicer(known, POOL)

    def add_to(self, server: Any) -> None:
        """Adds the service to a server that has not been started."""
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)

    async def ServerReflectionInfo(self, questions: AsyncIterator[Any], context: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        """Answers one question after another."""
        async for answer in self._known.ServerReflectionInfo(_prompt(questions), context):
            yield answer


async def _prompt(questions: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """The questions up to the first that is waited for too long."""
    with suppress(StopAsyncIteration, TimeoutError):
        while True:
            async with asyncio.timeout(REFLECTION_S):
                question = await anext(questions)
            yield question
