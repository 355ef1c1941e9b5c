"""Quotas of API keys by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lighttts.gateway.failures import Refused
from lighttts.gateway.keys import ApiKey
from lighttts.gateway.quotas import Quotas

ALICE = ApiKey("alice", b"", 2, 6)
BOB = ApiKey("bob", b"", 1, 600)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_requests_at_once_are_counted_for_each_key_until_they_end(quotas: Quotas, held: ExitStack) -> None:
    for _ in range(2):
        held.enter_context(quotas.admitted(ALICE))
    with pytest.raises(Refused) as refused, quotas.admitted(ALICE):
        pass
    assert (refused.value.failure.status, refused.value.failure.retry_after) == (429, 1.0)
    with quotas.admitted(BOB):
        pass
    held.close()
    with quotas.admitted(ALICE):
        pass


def test_requests_a_minute_come_back_with_time(quotas: Quotas, clock: Clock) -> None:
    for _ in range(6):
        with quotas.admitted(ALICE):
            pass
    with pytest.raises(Refused) as refused, quotas.admitted(ALICE):
        pass
    assert refused.value.failure.retry_after == pytest.approx(10.0)
    clock.now += 10.0
    with quotas.admitted(ALICE):
        pass


def test_a_request_that_fails_is_no_longer_counted(quotas: Quotas) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="it broke"), quotas.admitted(BOB):
            raise ValueError("it broke")


def test_without_keys_nobody_is_counted(quotas: Quotas, held: ExitStack) -> None:
    for _ in range(1000):
        held.enter_context(quotas.admitted(None))
