"""What the gateway knows of the system behind it: its model, and whether it can speak."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection

from lighttts.client import AsyncClient
from lighttts.errors import LightTTSError
from lighttts.transport.wire import Status

FRESH_S = 1.0
"""Seconds for which a status holds, so that probes cost the broker no more than that."""
STAGES = ("encode", "llm", "decode")


class Board:
    """Asks the broker. `clock`: monotonic seconds."""

    def __init__(self, client: AsyncClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._asking: asyncio.Task[Status] | None = None
        self._until = math.inf

    async def model(self) -> str:
        """The name of the model that is served, "" while there is no worker. Raises `Unavailable`."""
        models = [row.model for row in (await self._fresh()).workers]
        return models[0].partition(":")[0] if models else ""

    async def styles(self) -> tuple[str, ...]:
        """The names of the styles of that model which are served, sorted. Raises `Unavailable`."""
        rows = (await self._fresh()).workers
        return tuple(sorted({style for row in rows if (style := "".join(row.model.split(":")[2:]))}))

    async def style(self, model: str, aliases: Collection[str]) -> str | None:
        """What a request for `model` asks the broker for: a style, or "" for the name of the model itself and for
        `aliases`; None if there is no such model. Raises `Unavailable`."""
        served = await self.model()
        if model in await self.styles():
            return model
        # Without a worker nobody knows the model: the broker then says what is wrong, or waits for one.
        return "" if not served or model == served or model in aliases else None

    async def problem(self) -> str:
        """Why no text can be spoken now, in a sentence; "" if one can."""
        try:
            status = await self._fresh()
        except LightTTSError as error:
            return error.text
        ready = {row.stage for row in status.workers if row.state == "ready"}
        missing = [stage for stage in STAGES if stage not in ready]
        return f"no worker is ready for: {', '.join(missing)}" if missing else ""

    async def _fresh(self) -> Status:
        """One question serves all who ask meanwhile, also where it has no answer for seconds."""
        if self._asking is None or self._clock() >= self._until:
            self._until = math.inf
            self._asking = asyncio.create_task(self._client.status())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, asking: asyncio.Task[Status]) -> None:
        failed = asking.cancelled() or asking.exception() is not None
        self._until = self._clock() + (0.0 if failed else FRESH_S)
