"""The gateway's gRPC server: all services on a port of their own, in the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from lighttts.client import AsyncClient
from lighttts.config import GatewayConfig
from lighttts.errors import ConfigError
from lighttts.gateway.board import Board
from lighttts.gateway.certificate import Certificate
from lighttts.gateway.identity import Identity
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.quotas import Quotas
from lighttts.gateway.rpc.calls import Calls
from lighttts.gateway.rpc.cosyvoice import CosyVoice
from lighttts.gateway.rpc.probes import Health, Reflection
from lighttts.gateway.rpc.speech import Speech
from lighttts.gateway.speech import Speaker
from lighttts.logs import get_logger
from lighttts.transport.wire import MAX_AUDIO_FILE

MESSAGE_MAX_BYTES = 2 * MAX_AUDIO_FILE + (2 << 20)
"""Two recordings and their texts."""
METADATA_MAX_BYTES = 16 << 10
PING_S = 30
"""A client whose connection was silent for so long is asked whether it is still there, and has as long to say so."""
HANDSHAKE_S = 10
"""A new connection must have said so soon that it speaks TLS, where that is asked for, and HTTP/2."""
IDLE_S = 300
"""A connection without calls is closed after so long; clients open another when they need one."""
_OPTIONS = (
    # A port that another server uses is an error, not half of its clients.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.max_connection_idle_ms", IDLE_S * 1000),
    ("grpc.keepalive_time_ms", PING_S * 1000),
    ("grpc.keepalive_timeout_ms", PING_S * 1000),
    # Clients may ask as often whether this server is still there.
    ("grpc.http2.min_ping_interval_without_data_ms", PING_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class RpcServer:
    """Serves from `start` to `stop`. To be made in the event loop that it runs in."""

    def __init__(
        self,
        settings: GatewayConfig,
        keys: KeyRing | None,
        certificate: Certificate | None,
        client: AsyncClient,
        quotas: Quotas,
    ) -> None:
        self._host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._port = settings.grpc_port
        self._certificate = certificate
        calls = Calls(keys, settings.proxies)
        speaker = Speaker(client, quotas)
        speech, cosyvoice = Speech(client, speaker), CosyVoice(speaker)
        names = (speech.service.name, cosyvoice.service.name)
        self._health = Health(Board(client), names)
        self._server: Any = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=settings.connections)
        self._server.add_generic_rpc_handlers((speech.handlers(calls), cosyvoice.handlers(calls)))
        self._health.add_to(self._server)
        Reflection(names).add_to(self._server)
        self._stopping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts to serve. Raises `ConfigError` if it cannot be on that address."""
        where = f"{self._host}:{self._port}"
        try:
            if self._certificate:
                port = self._server.add_secure_port(where, _credentials(self._certificate))
            else:
                port = self._server.add_insecure_port(where)
        except RuntimeError as error:
            text = f"cannot serve gRPC on {where}, perhaps it is in use; set gateway.host and gateway.grpc_port"
            raise ConfigError(text) from error
        await self._server.start()
        get_logger().info("grpc started", host=self._host, port=port, tls=self._certificate is not None)

    def stop(self, grace: float | None) -> None:
        """Takes no new calls; those under way have `grace` seconds to finish, None: none. May be called again."""
        self._health.stop()
        self._stopping.append(asyncio.create_task(self._server.stop(grace)))

    async def stopped(self) -> None:
        """Returns when all calls have ended, after `stop`."""
        await asyncio.gather(*self._stopping)


def _credentials(certificate: Certificate) -> Any:
    """A server's side of TLS, which has at each handshake the certificate of that moment."""
    told = certificate.current

    def changed() -> Any:
        nonlocal told
        before, told = told, certificate.current
        return None if told is before else _configuration(told)

    return grpc.dynamic_ssl_server_credentials(_configuration(told), changed)


def _configuration(identity: Identity) -> Any:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)])
