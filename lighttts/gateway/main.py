"""lighttts-gateway: the daemon's entry point."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from lighttts.client import AsyncClient
from lighttts.config import Config, GatewayConfig
from lighttts.daemon import run_daemon
from lighttts.errors import ConfigError, MissingDependency
from lighttts.gateway.app import make_app
from lighttts.gateway.body import FORM_MAX_BYTES
from lighttts.gateway.certificate import Certificate
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import check_access
from lighttts.gateway.protocol import PatientProtocol
from lighttts.gateway.quotas import Quotas
from lighttts.logs import get_logger
from lighttts.notify import notify, watchdog_interval

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from lighttts.gateway.rpc.server import RpcServer

DRAIN_S = 60
"""Seconds that requests in flight have to finish after the gateway was told to end."""
KEEP_ALIVE_S = 5
HEADERS_MAX_BYTES = 16 << 10
BACKLOG = 512


class Server(uvicorn.Server):
    """uvicorn with our signals, word to the service manager, and the gRPC server, if there is one, beside it. SIGTERM
    drains, a second signal ends at once."""

    def __init__(self, config: uvicorn.Config, rpc: RpcServer | None) -> None:
        super().__init__(config)
        self._rpc = rpc

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises again what it was ended by, which would make of an orderly end a death by signal."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to serve."""
        await super().startup(sockets)
        # What is there now stays: looking through all of it for garbage again would hold up every stream for 50 ms.
        gc.collect()
        gc.freeze()
        notify("READY=1")

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._rpc:
            self._rpc.stop(None if self.force_exit else DRAIN_S)
        notify("STOPPING=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Returns when no request is left."""
        await super().shutdown(sockets)
        if self._rpc:
            await self._rpc.stopped()


def serve(config: Config) -> int:
    """Serves until SIGTERM or SIGINT. Raises `ConfigError` when keys, certificate or address cannot be used."""
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    settings = config.gateway
    keys = KeyRing(settings.keys) if settings.keys else None
    check_access(settings.host, settings.keys, plain=config.security.allow_plain)
    client = AsyncClient(config.brokers, keys=config.security.keys)
    certificate = Certificate(*settings.tls) if settings.tls else None
    with listen(settings) as listener:
        async with client:
            quotas = Quotas()
            rpc = None if settings.grpc_port is None else _rpc_server(settings, keys, certificate, client, quotas)
            if rpc:
                await rpc.start()
            http = _http(make_app(client, quotas, keys, settings.cors_origins), settings, certificate)
            server = Server(http, rpc)
            host, port = listener.getsockname()[:2]
            tls = certificate is not None
            get_logger().info("gateway started", host=host, port=port, keys=keys is not None, tls=tls)
            watching = asyncio.create_task(_feed_watchdog())
            try:
                await server.serve([listener])
            finally:
                watching.cancel()


def _http(app: ASGIApp, settings: GatewayConfig, certificate: Certificate | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=FORM_MAX_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=[*settings.proxies],
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
    )
    config.load()
    config.ssl = certificate.context() if certificate else None
    return config


def _rpc_server(
    settings: GatewayConfig,
    keys: KeyRing | None,
    certificate: Certificate | None,
    client: AsyncClient,
    quotas: Quotas,
) -> RpcServer:
    # Its core writes lines of its own to standard error, which are no log lines; what matters comes as errors too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from lighttts.gateway.rpc.server import RpcServer
    except ImportError as error:
        raise MissingDependency(f"gRPC cannot be served ({error}): pip install 'lighttts[gateway]'") from error
    return RpcServer(settings, keys, certificate, client, quotas)


def listen(settings: GatewayConfig) -> socket.socket:
    """The socket to serve on. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Said to be TCP, for only then asyncio has what is written sent at once; else the first audio waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise ConfigError(
            f"cannot serve HTTP on {where}: {error.strerror}; set gateway.host and gateway.port"
        ) from error
    return listener


async def _feed_watchdog() -> None:
    """From the event loop, so that one that hangs is noticed."""
    interval = watchdog_interval()
    while interval:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def main() -> int:
    """The console script; returns the exit code."""
    return run_daemon("gateway", "Serves LightTTS over HTTP and gRPC.", serve)


if __name__ == "__main__":
    sys.exit(main())
