"""Writes that go to Redis together: fewer scripts, the same records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveState, Write
from lighttts.broker.redis_records import together
from lighttts.broker.redis_store import RedisStore
from tests.broker.harness import raw, tokens
from tests.broker.stores import Told, record_of, write_safely

WRITES = st.lists(
    st.builds(AppendTokens, st.sampled_from("ab"), st.integers(0, 9), st.just([b"t"]))
    | st.builds(SaveState, st.sampled_from("ab"), st.sampled_from(["generating", "decoding"]))
    | st.builds(DeleteRequest, st.sampled_from("ab"))
)


@given(WRITES)
def test_a_requests_writes_stay_in_order_and_none_is_lost(writes: list[Write]) -> None:
    after = [write for group in together(writes) for write in group]
    for request_id in "ab":
        assert [w for w in after if w.request_id == request_id] == [w for w in writes if w.request_id == request_id]


@given(WRITES)
def test_only_tokens_of_one_request_go_together(writes: list[Write]) -> None:
    for group in together(writes):
        assert len({write.request_id for write in group}) == 1
        assert len(group) == 1 or all(isinstance(write, AppendTokens) for write in group)


@given(WRITES)
def test_what_is_together_stays_so(writes: list[Write]) -> None:
    groups = together(writes)
    assert together(write for group in groups for write in group) == groups


def test_tokens_of_many_requests_in_turn_are_all_stored(store: RedisStore, told: Told) -> None:
    names = [f"r{number}" for number in range(5)]
    log = [AppendTokens(name, seq, raw(tokens(name, 2, seq))) for seq in range(2, 60) for name in names]
    write_safely(store, told, *(write for name in names for write in record_of(name)), *log)
    stored = store.load().requests
    assert {name: [*stored[name].tokens] for name in names} == {name: [*range(60)] for name in names}
    assert told.lost.empty()


def test_a_hole_in_a_log_that_is_written_at_once_ends_the_record(store: RedisStore, told: Told) -> None:
    log = [AppendTokens("r1", seq, raw(tokens("r1", 2, seq))) for seq in (2, 3, 5)]
    write_safely(store, told, *record_of("r1"), *log)
    assert "r1" not in store.load("r1").requests
