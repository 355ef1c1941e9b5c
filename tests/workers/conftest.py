"""Fixtures of the workers' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.fakes import FakeBroker, Running, ScriptedStage, running


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker()
    yield broker
    broker.close()


@pytest.fixture
def stage() -> ScriptedStage:
    return ScriptedStage()


@pytest.fixture
def worker(stage: ScriptedStage, broker: FakeBroker) -> Iterator[Running]:
    with running(stage, broker) as worker:
        yield worker
