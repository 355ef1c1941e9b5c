"""Quiet logs, and the sockets of the tests' peers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.redis_server import RedisServer


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the broker's log lines, which come from other threads, out of the tests' output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The peers' sockets, which take any number of messages."""
    with Sockets(SocketOptions(high_water_mark=0, linger_ms=100)) as sockets:
        yield sockets
