"""A real Redis for tests, one for each that asks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis


class RedisServer:
    """A redis-server on a unix socket, with nothing on disk. It can be killed, started again and made to refuse.

    `options` are further words of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.path = folder / "redis.sock"
        self.url = f"unix://{self.path}"
        self._options = options or ("--port", "0")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it and returns when it answers."""
        place = ["--unixsocket", str(self.path), "--dir", str(self.folder), "--save", ""]
        self._process = subprocess.Popen(["redis-server", *self._options, *place], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        """Ends it at once."""
        if self._process:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
            self.path.unlink(missing_ok=True)

    def client(self) -> redis.Redis:
        """A connection for the test to look with."""
        return redis.Redis(unix_socket_path=str(self.path))


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis of its own for a test."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts a Redis with options."""
    servers = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path, *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
