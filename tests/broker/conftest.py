"""What the broker's tests share: quiet logs, and a store on a real Redis for those that need one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from lighttts.broker.redis_store import RedisStore
from tests.broker.stores import Told, open_store
from tests.redis_server import RedisServer


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the broker's log lines, which come from other threads, out of the tests' output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def told() -> Iterator[Told]:
    """Checks at the end that the store's thread has not died."""
    told = Told()
    yield told
    assert told.crashed.empty()


@pytest.fixture
def store(redis_server: RedisServer, told: Told) -> Iterator[RedisStore]:
    """A store on a real Redis."""
    store = open_store(redis_server.url, told)
    yield store
    store.close(1.0)
