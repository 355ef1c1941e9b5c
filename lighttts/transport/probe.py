"""Is anything listening on an endpoint? Answered at once by a plain connection, without ZeroMQ and its reconnecting."""

from __future__ import annotations

import socket

from lighttts.errors import ConfigError


def listening(endpoint: str, timeout: float = 1.0) -> bool:
    """True if a process accepts connections on ``tcp://host:port`` or ``ipc://path`` within `timeout` seconds.

    Raises `ConfigError` on an endpoint of another form.
    """
    try:
        if endpoint.startswith("ipc://"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(timeout)
                probe.connect(endpoint.removeprefix("ipc://"))
        else:
            with socket.create_connection(tcp_address(endpoint), timeout):
                pass
    except OSError:
        return False
    return True


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Host and port of ``tcp://host:port`` (an IPv6 host in brackets). Raises `ConfigError`."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{endpoint!r} is not an address: use tcp://host:port or ipc:///path")
    return host.strip("[]"), int(port)
