"""Endpoints as text: the default one, their form, and whether anything listens there. Needs no ZeroMQ."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from lighttts.errors import ConfigError

DEFAULT_BROKER = "tcp://127.0.0.1:5570"

_EVERY_ADDRESS = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def endpoint_list(brokers: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses in one text with commas, or in several texts, each once. Raises `ConfigError` on another form."""
    texts = brokers.split(",") if isinstance(brokers, str) else brokers
    endpoints = tuple(dict.fromkeys(text.strip() for text in texts))
    if not endpoints:
        raise ConfigError("no address of a broker is given: use tcp://host:port or ipc:///path")
    for endpoint in endpoints:
        if not endpoint.startswith("ipc://"):
            tcp_address(endpoint)
    return endpoints


def either(endpoints: Sequence[str]) -> str:
    """The addresses as words: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(endpoints[:-1]), endpoints[-1])))


def connectable(endpoint: str) -> str:
    """Where to connect to what is bound to `endpoint`: a wildcard host becomes this machine."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon:
        return endpoint
    return f"tcp://{_EVERY_ADDRESS.get(host, host)}:{port}"


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Host and port of ``tcp://host:port`` (an IPv6 host in brackets). Raises `ConfigError`."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{endpoint!r} is not an address: use tcp://host:port or ipc:///path")
    return host.strip("[]"), int(port)


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine reaches what is bound to ``tcp://host:port``; a name is taken for a network's."""
    host, _, _ = endpoint.removeprefix("tcp://").rpartition(":")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening(endpoint: str, timeout: float = 1.0) -> bool:
    """True if a process accepts connections on ``tcp://host:port`` or ``ipc://path`` within `timeout` seconds.

    A plain connection answers at once, where ZeroMQ would go on trying. Raises `ConfigError` on another form.
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
