"""Steps of a shared GPU are spaced by how many requests they advance."""

from __future__ import annotations

import pytest

from lighttts.engine.llm_spacing import Spacing


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("active", "pause"), [(0, 0.0), (3, 0.0005), (12, 0.002), (32, 0.002), (48, 0.003), (200, 0.004)]
)
def test_the_more_requests_the_longer_up_to_the_whole_time(clock: Clock, active: int, pause: float) -> None:
    spacing = Spacing(0.004, clock)
    assert spacing.pause(active, full=False) == 0.0
    assert spacing.pause(active, full=False) == pytest.approx(pause)


def test_time_already_spent_counts(clock: Clock) -> None:
    spacing = Spacing(0.004, clock)
    spacing.pause(80, full=False)
    clock.now += 0.003
    assert spacing.pause(80, full=False) == pytest.approx(0.001)
    clock.now += 0.001 + 0.007
    assert spacing.pause(80, full=False) == 0.0


def test_an_overdue_step_does_not_bring_the_next_forward(clock: Clock) -> None:
    spacing = Spacing(0.004, clock)
    spacing.pause(80, full=False)
    clock.now += 1.0
    assert spacing.pause(80, full=False) == 0.0
    assert spacing.pause(80, full=False) == pytest.approx(0.004)


def test_nothing_is_waited_for_while_requests_wait_for_a_slot(clock: Clock) -> None:
    spacing = Spacing(0.004, clock)
    spacing.pause(80, full=True)
    assert spacing.pause(80, full=True) == 0.0
    assert spacing.pause(80, full=False) == pytest.approx(0.004)
