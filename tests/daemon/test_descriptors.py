"""Where descriptors are scarce daemons live on, and the metrics port cannot be used to take them all."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts import metrics
from lighttts.metrics import HealthServer, resident_bytes
from lighttts.notify import notify


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 50, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_a_daemon_tells_each_second_needs_no_new_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1")
        assert resident_bytes() > 0
        with no_descriptor_left():
            assert notify("WATCHDOG=1")
            assert resident_bytes() > 0
        assert [manager.recv(64) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]


@contextlib.contextmanager
def serving() -> Iterator[HealthServer]:
    server = HealthServer(0, lambda: (True, "well"))
    try:
        yield server
    finally:
        server.close()


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_a_connection_to_the_metrics_port_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCRAPE_S", 0.1)
    with serving() as server, connect(server) as idle:
        assert idle.recv(1) == b""


def test_the_metrics_port_serves_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCRAPE_S", 60.0)
    monkeypatch.setattr(metrics, "MOST_SCRAPES", 2)
    with serving() as server, connect(server) as first, connect(server), connect(server) as beyond:
        assert beyond.recv(1) == b""
        first.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        while first.recv(4096):
            pass
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
            assert answer.status == 200
