"""A worker that fails time and again is avoided for a while, as long as there is another."""

from __future__ import annotations

import pytest

from lighttts.broker.instructions import Metric
from lighttts.transport import wire
from tests.broker.harness import Harness, encoded, synth

FAILURES = 3
OPEN_S = 20.0
BAD, GOOD = (b"encode-1", 1), (b"encode-2", 2)


@pytest.fixture
def harness() -> Harness:
    """Two encode workers; the bad one has granted more credit, so it is chosen while it is trusted."""
    harness = Harness(worker_breaker_failures=FAILURES, worker_breaker_s=OPEN_S, no_worker_s=1000, deadline_s=1000)
    harness.worker("encode", BAD[1], credit=100)
    harness.worker("encode", GOOD[1], credit=10)
    return harness


def begin(harness: Harness, request_id: str) -> bytes:
    """Begins a request; returns the worker that got it."""
    harness.say(synth(request_id))
    return next(worker for worker, _ in (BAD, GOOD) if any(sent(harness, worker, request_id)))


def sent(harness: Harness, worker: bytes, request_id: str) -> list[bool]:
    return [isinstance(m, wire.EncodeWork) and m.request_id == request_id for m in harness.take(worker)]


def failed(request_id: str) -> wire.StageFailed:
    return wire.StageFailed(request_id, 0, BAD[1], "worker_failed", "broken", "", True)


def distrust(harness: Harness) -> None:
    for number in range(FAILURES):
        assert begin(harness, f"bad{number}") == BAD[0]
        harness.result(failed(f"bad{number}"))
        harness.say(wire.Cancel(f"bad{number}"))


def condition(harness: Harness) -> str:
    status = harness.say(wire.GetStatus(1))[-1]
    assert isinstance(status, wire.Status)
    return next(worker.state for worker in status.workers if worker.worker == BAD[0].decode())


def test_after_a_few_failures_in_a_row_work_goes_to_others(harness: Harness) -> None:
    distrust(harness)
    assert begin(harness, "r1") == GOOD[0]
    assert condition(harness) == "avoided"
    assert harness.counted[Metric.WORKER_FAILURES, "encode"] == FAILURES
    assert [log.event for log in harness.logs].count("worker avoided") == 1


def test_a_result_between_failures_makes_up_for_them(harness: Harness) -> None:
    for number in range(2 * FAILURES):
        assert begin(harness, f"bad{number}") == BAD[0]
        harness.result(failed(f"bad{number}"))
        harness.say(wire.Cancel(f"bad{number}"))
        assert begin(harness, f"good{number}") == BAD[0]
        harness.result(encoded(f"good{number}", BAD[1]))
    assert condition(harness) == "ready"


def test_a_refusal_of_bad_input_is_no_failure(harness: Harness) -> None:
    for number in range(2 * FAILURES):
        assert begin(harness, f"r{number}") == BAD[0]
        harness.result(wire.StageFailed(f"r{number}", 0, BAD[1], "invalid_input", "no such voice", "voice", False))
    assert condition(harness) == "ready"


def test_the_only_worker_is_not_avoided() -> None:
    harness = Harness(worker_breaker_failures=1, no_worker_s=1000)
    harness.worker("encode", BAD[1], credit=100)
    assert begin(harness, "r1") == BAD[0]
    harness.result(failed("r1"))
    assert any(sent(harness, BAD[0], "r1"))


@pytest.mark.parametrize("succeeds", [True, False])
def test_after_a_while_one_request_tries_it_again(harness: Harness, succeeds: bool) -> None:
    distrust(harness)
    harness.pass_time(OPEN_S, alive=(BAD, GOOD))
    assert begin(harness, "trial") == BAD[0]
    assert begin(harness, "meanwhile") == GOOD[0]
    if succeeds:
        harness.result(encoded("trial", BAD[1]))
    else:
        harness.result(failed("trial"))
    assert begin(harness, "next") == (BAD[0] if succeeds else GOOD[0])


def test_a_worker_that_dies_with_work_and_starts_again_under_its_name_is_avoided_too(harness: Harness) -> None:
    for number in range(FAILURES):
        assert begin(harness, f"r{number}") == BAD[0]
        harness.gone.add(BAD[0])
        harness.control(BAD[0], wire.Heartbeat(BAD[1], 1, 0, 0))
        harness.gone.discard(BAD[0])
        harness.say(wire.Cancel(f"r{number}"))
        harness.worker("encode", BAD[1], credit=100)
    assert begin(harness, "r9") == GOOD[0]
