"""Fixtures of the workers' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.workers.connector import Address
from tests.workers.fakes import OPEN, FakeBroker, Running, ScriptedStage, running


@pytest.fixture(autouse=True)
def _no_broker_stays_open() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def address(tmp_path: Path) -> Address:
    """Where there is no broker yet. No TCP port: while none listens there, a connection attempt may find itself."""
    return Address(f"ipc://{tmp_path}/workers", f"ipc://{tmp_path}/results")


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> ScriptedStage:
    """With a capacity of 4, or as the test's parameter says."""
    return ScriptedStage(getattr(request, "param", 4))


@pytest.fixture
def worker(stage: ScriptedStage, broker: FakeBroker) -> Iterator[Running]:
    with running(stage, broker.address) as worker:
        yield worker
