"""Who calls, where a proxy may be in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class Peers:
    """Tells clients' addresses, on the word of those that connect from `proxies` and of nobody else."""

    def __init__(self, proxies: Iterable[str]) -> None:
        # What decides it for HTTP, so that both doors believe the same.
        self._decide: Any = ProxyHeadersMiddleware(_nothing, [*proxies])

    async def address(self, peer: str, metadata: Sequence[tuple[str, str | bytes]]) -> str:
        """The IP address of the client of a call that comes from `peer`, such as "ipv4:127.0.0.1:40000"."""
        headers = [(b"x-forwarded-for", said.encode()) for name, said in _texts(metadata) if name == "x-forwarded-for"]
        scope = {"type": "http", "client": (_address(peer), 0), "headers": headers}
        await self._decide(scope, None, None)
        address, _ = scope["client"]
        return str(address)


async def _nothing(scope: object, receive: object, send: object) -> None:
    """An application."""


def _texts(metadata: Sequence[tuple[str, str | bytes]]) -> Iterable[tuple[str, str]]:
    return ((name, said) for name, said in metadata if isinstance(said, str))


def _address(peer: str) -> str:
    """That of "ipv4:127.0.0.1:40000" or "ipv6:%5B::1%5D:40000"."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
