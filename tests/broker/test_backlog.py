"""What waits for Redis: bounded, in order, and without holes in any record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.broker.backlog import BATCH_WRITES, Backlog
from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveRequest, SaveState, Write


def new(request_id: str) -> SaveRequest:
    return SaveRequest(request_id, b"client", [b"message"])


def append(request_id: str, seq: int, size: int = 1) -> AppendTokens:
    return AppendTokens(request_id, seq, [bytes(size)])


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(most_writes=4, most_bytes=100)


def test_writes_come_out_in_the_order_they_went_in(backlog: Backlog) -> None:
    writes = [new("a"), new("b"), append("a", 0), SaveState("b", "encoding")]
    assert all(backlog.put(write) for write in writes)
    assert backlog.take() == writes
    assert backlog.take() == []


def test_a_batch_is_bounded() -> None:
    backlog = Backlog(10_000, 1 << 30)
    backlog.put(new("a"))
    for seq in range(3000):
        backlog.put(append("a", seq))
    assert len(backlog.take()) == BATCH_WRITES
    assert len(backlog.take()) == 3001 - BATCH_WRITES


def test_a_write_to_a_record_that_is_not_kept_is_dropped(backlog: Backlog) -> None:
    assert backlog.put(append("stranger", 0))
    assert backlog.put(DeleteRequest("stranger"))
    assert backlog.take() == []


def test_a_record_for_whose_write_there_is_no_room_is_deleted_and_not_written_to_again(backlog: Backlog) -> None:
    for write in (new("a"), new("b"), append("a", 0), append("a", 1)):
        assert backlog.put(write)
    assert not backlog.put(append("a", 2))
    assert not backlog.keeps("a")
    assert backlog.put(append("a", 3))
    assert backlog.put(DeleteRequest("a"))
    assert backlog.take()[-1] == DeleteRequest("a")
    assert len(backlog) == 0


def test_new_requests_for_which_there_is_no_room_leave_nothing(backlog: Backlog) -> None:
    for number in range(4):
        assert backlog.put(new(f"r{number}"))
    for number in range(4, 100):
        assert not backlog.put(new(f"r{number}"))
        assert backlog.put(DeleteRequest(f"r{number}"))
    assert len(backlog) == 4


def test_bytes_are_bounded_as_writes_are(backlog: Backlog) -> None:
    backlog.put(new("a"))
    assert not backlog.put(append("a", 0, size=100))
    backlog.take()
    backlog.put(new("a"))
    assert backlog.put(append("a", 0, size=93))


def test_new_requests_are_withdrawn_with_all_that_was_written_to_them() -> None:
    backlog = Backlog(100, 1000)
    for write in (new("old"), append("old", 0)):
        backlog.put(write)
    backlog.take()
    for write in (new("sent"), append("old", 1)):
        backlog.put(write)
    batch = backlog.take()
    for write in (append("old", 2), new("waits"), SaveState("sent", "admitted")):
        backlog.put(write)
    ids, batch = backlog.withdraw_new(batch)
    assert ids == ["sent", "waits"]
    assert batch == [append("old", 1), DeleteRequest("sent"), DeleteRequest("waits")]
    assert backlog.take() == [append("old", 2)]
    assert [backlog.keeps(request_id) for request_id in ("old", "sent", "waits")] == [True, False, False]


ACTIONS = st.lists(
    st.sampled_from(["new", "append", "end", "deliver", "fail"]).flatmap(
        lambda action: st.tuples(st.just(action), st.sampled_from("abc"))
    ),
    max_size=80,
)


@given(ACTIONS, st.integers(1, 12))
def test_whatever_happens_no_record_has_a_hole(actions: list[tuple[str, str]], most: int) -> None:
    backlog = Backlog(most, 1000)
    stored: dict[str, list[int]] = {}
    logs: dict[str, int] = {}
    batch: list[Write] = []
    for action, request_id in [*actions, *[("deliver", "")] * 2]:
        if action == "new" and request_id not in logs:
            logs[request_id] = 0
            backlog.put(new(request_id))
        elif action == "append" and request_id in logs:
            backlog.put(append(request_id, logs[request_id]))
            logs[request_id] += 1
        elif action == "end" and logs.pop(request_id, None) is not None:
            backlog.put(DeleteRequest(request_id))
        elif action == "deliver":
            apply(batch := batch or backlog.take(), stored)
            batch = []
        elif action == "fail":
            apply(batch := batch or backlog.take(), stored)
            for withdrawn in (result := backlog.withdraw_new(batch))[0]:
                logs.pop(withdrawn, None)
            batch = result[1]
        assert len(backlog) <= 2 * most + 3
    for request_id, log in stored.items():
        assert log == [*range(len(log))]
        if backlog.keeps(request_id):
            assert len(log) == logs[request_id]
    assert stored.keys() == {request_id for request_id in "abc" if backlog.keeps(request_id)}


def apply(batch: list[Write], stored: dict[str, list[int]]) -> None:
    """What Redis does with a batch; done twice, it comes to the same."""
    for write in batch:
        match write:
            case SaveRequest():
                stored[write.request_id] = []
            case DeleteRequest():
                stored.pop(write.request_id, None)
            case AppendTokens(_, seq, _) if write.request_id in stored and seq == len(stored[write.request_id]):
                stored[write.request_id].append(seq)
            case AppendTokens() if write.request_id not in stored:
                pass
            case AppendTokens(_, seq, _):
                assert seq < len(stored[write.request_id])
