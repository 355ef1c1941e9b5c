"""The certificate of a running gateway, for TLS of HTTP and of gRPC."""

from __future__ import annotations

import ssl
from pathlib import Path

from lighttts.errors import ConfigError
from lighttts.gateway.identity import Identity, read_identity
from lighttts.gateway.stamps import Stamp, stamp_of
from lighttts.logs import get_logger


class Certificate:
    """A certificate and its key in two files, read again when one of them changes. Raises `ConfigError` when they
    cannot be used at the start. May be asked from several threads."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = certificate, key
        self._seen = self._stamps()
        self._identity = read_identity(certificate, key)

    @property
    def current(self) -> Identity:
        """As the files are now; as they were, if they cannot be used now."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._identity = read_identity(*self._paths)
            except ConfigError as error:
                # The two files change one after the other, and a slip in them must not shut everybody out.
                get_logger().error("the certificate stays as it was", reason=error.text)
        return self._identity

    def context(self) -> ssl.SSLContext:
        """A server's side of TLS, which has at each handshake the certificate of that moment."""
        context = self._identity.context

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, before: ssl.SSLContext) -> None:
            connection.context = self.current.context

        context.sni_callback = choose
        return context

    def _stamps(self) -> list[Stamp]:
        return [stamp_of(path) for path in self._paths]
