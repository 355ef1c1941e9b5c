"""Mutated messages at every socket of a running broker do no harm: the short form of `python -m benchmarks.fuzz`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import fuzz
from tests.system.stack import Stack

COUNT = 30_000


def test_mutated_messages_at_every_socket_leave_the_broker_and_real_requests_unharmed(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        figures, notes = fuzz(stack, COUNT, seed=1)
    assert not figures.problems, (figures, notes)
    assert figures.messages == COUNT
    assert figures.answers > COUNT / 10
