"""Mutated messages and handshakes at every socket do no harm: the short form of `python -m benchmarks.fuzz`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import SOCKETS, fuzz_handshakes, fuzz_messages
from tests.chaos.guarded import GuardedStack
from tests.system.stack import Stack

MESSAGES = 2_500
HANDSHAKES = 150


def test_mutated_messages_at_every_socket_leave_the_broker_and_real_requests_unharmed(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        figures, notes = fuzz_messages(stack, MESSAGES, seed=1)
    assert not figures.problems, (figures, notes)
    assert figures.messages == MESSAGES * len(SOCKETS)
    assert figures.answers > figures.messages / 10


def test_no_handshake_but_the_right_one_at_the_right_socket_gets_in(tmp_path: Path) -> None:
    with GuardedStack(tmp_path) as stack:
        figures, notes = fuzz_handshakes(stack, HANDSHAKES, seed=1)
    assert not figures.problems, (figures, notes)
    assert figures.connections == HANDSHAKES
    assert HANDSHAKES / 10 < figures.admitted < HANDSHAKES / 2
