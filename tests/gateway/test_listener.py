"""The gateway's connections."""

from __future__ import annotations

import asyncio
import socket

from lighttts.config import GatewayConfig
from lighttts.gateway.main import listen


def test_what_is_written_is_sent_at_once() -> None:
    async def run() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(GatewayConfig(port=0)) as listener:
            async with await asyncio.start_server(take, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                undelayed = await accepted
                writer.close()
                await writer.wait_closed()
        return undelayed

    assert asyncio.run(run())
