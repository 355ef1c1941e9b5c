"""Whether what listens at a Redis' address speaks TLS: told apart by raw sockets when a connection fails."""

from __future__ import annotations

import socket
import ssl

TIMEOUT_S = 1.0


def tls_mismatch(host: str, port: int, *, tls: bool) -> str:
    """What is wrong with speaking TLS (or not) to that address, as words that follow a colon; empty if nothing is."""
    if not tls:
        spoken = _handshake(host, port) is not None
        return "it speaks TLS: write rediss:// instead of redis:// in broker.state" if spoken else ""
    if _answers_plainly(host, port):
        return "it does not speak TLS: write redis:// instead of rediss:// in broker.state"
    if _handshake(host, port):
        return "it wants a certificate of the broker: add ssl_certfile=...&ssl_keyfile=... to broker.state"
    return ""


def _answers_plainly(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as plain:
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _handshake(host: str, port: int) -> str | None:
    """Why TLS without a certificate of ours is refused; empty if it is not, None if TLS is not spoken there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return _first_word(secure)
    except ssl.SSLError as error:
        return str(error.reason) if "ALERT" in str(error.reason) else None
    except OSError:
        return None


def _first_word(secure: ssl.SSLSocket) -> str:
    """What the server says first: nothing, unless it wants a certificate."""
    secure.settimeout(TIMEOUT_S / 4)
    try:
        return "" if secure.recv(1) else "closed"
    except TimeoutError:
        return ""
    except ssl.SSLError as error:
        return str(error.reason)
