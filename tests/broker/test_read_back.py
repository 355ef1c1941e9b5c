"""What a broker finds stored when it starts, and whose it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgpack
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighttts.broker.instructions import (
    PARKED_S,
    AppendTokens,
    DeleteRequest,
    ReleaseRequest,
    SaveRequest,
    SaveState,
)
from lighttts.broker.keys import EVERY_REQUEST, keys_of, lease_of, request_of
from lighttts.broker.redis_records import Damaged, Raw, packed, saved
from lighttts.broker.redis_store import RedisStore
from lighttts.broker.state import PARKED_BYTES, PARKED_MOST, Claim, MemoryStore, Saved, StateStore
from lighttts.errors import InvalidInput, Unavailable
from lighttts.transport import wire
from tests.broker.harness import CLIENT, convert, encoded, raw, source, synth, tokens
from tests.broker.stores import QUICK, WAIT_S, Told, open_store, record_of, write_safely
from tests.redis_server import RedisServer

BRIEF = QUICK._replace(lease_s=0.05)
"""A lease that runs out soon."""


@pytest.fixture
def other(redis_server: RedisServer) -> Iterator[tuple[RedisStore, Told]]:
    """Another broker's store in the same Redis, and what it tells."""
    told = Told()
    store = open_store(redis_server.url, told, owner="other")
    yield store, told
    store.close(1.0)
    assert told.crashed.empty()


def live(store: RedisStore, server: RedisServer, owner: str) -> None:
    """Renews the lease and waits until it is there."""
    store.renew()
    with server.client() as look:
        wait_until(lambda: bool(look.exists(lease_of(owner))))


def die(server: RedisServer, owner: str) -> None:
    """The lease of a broker that is dead has run out."""
    with server.client() as look:
        look.delete(lease_of(owner))


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline


# ---- all that is stored ----------------------------------------------------------------------------------------------


def check_r1(found: Saved, owner: str) -> None:
    assert (found.client, found.state, found.owner) == (CLIENT, "decoding", owner)
    assert found.received == pytest.approx(time.time(), abs=WAIT_S)
    assert [bytes(part) for part in found.synth] == [bytes(part) for part in raw(synth("r1"))]
    assert [bytes(part) for part in found.encoded] == [bytes(part) for part in raw(encoded("r1", 1))]
    log = {seq: [bytes(part) for part in frames] for seq, frames in found.tokens.items()}
    assert log == {0: raw(tokens("r1", 2, 0)), 1: raw(tokens("r1", 2, 1, last=True))}
    assert list(log) == [0, 1]


def raw_record(message: wire.Message, result: wire.Encoded) -> Raw:
    """A record as Redis has it."""
    fields = {
        b"owner": b"",
        b"client": CLIENT,
        b"synth": packed(raw(message)),
        b"state": b"decoding",
        b"received": b"1",
    }
    return Raw({**fields, b"synth": packed(raw(message))}, packed(raw(result)), {})


def test_a_conversion_is_read_back_as_it_was_asked_for() -> None:
    found = saved("r1", raw_record(convert("r1"), source("r1", 1)))
    assert wire.decode(found.synth) == convert("r1")
    assert wire.decode(found.encoded) == source("r1", 1)


@pytest.mark.parametrize("message", [convert("r2"), synth("r2"), encoded("r1", 1)])
def test_what_asks_for_no_such_request_is_damaged(message: wire.Message) -> None:
    with pytest.raises(Damaged, match="Synth or Convert message"):
        saved("r1", raw_record(message, source("r1", 1)))


def test_memory_gives_back_what_it_has() -> None:
    store = MemoryStore()
    for write in (*record_of("r1"), *record_of("r2"), DeleteRequest("r2")):
        store.write(write)
    found = store.load()
    assert found.requests.keys() == {"r1"}
    assert found.damaged == {}
    check_r1(found.requests["r1"], "")


def test_redis_gives_back_to_another_broker_what_a_dead_one_stored(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"), *record_of("r2")[:1], *record_of("gone"), DeleteRequest("gone"))
    wait_until(lambda: "last" not in other[0].load().requests)
    found = other[0].load()
    assert found.requests.keys() == {"r1", "r2"}
    assert found.damaged == {}
    check_r1(found.requests["r1"], "me")
    assert (found.requests["r2"].state, found.requests["r2"].encoded, found.requests["r2"].tokens) == (
        "received",
        (),
        {},
    )


def test_some_requests_are_read_by_their_ids(store: RedisStore, told: Told) -> None:
    memory = MemoryStore()
    writes = (*record_of("r1"), *record_of("r2"), *record_of("r3"))
    for write in writes:
        memory.write(write)
    write_safely(store, told, *writes)
    for each in (memory, store):
        assert each.load("r1", "r3", "never was").requests.keys() == {"r1", "r3"}
        assert each.load("never was").requests == {}


def test_hundreds_of_records_are_read(store: RedisStore, told: Told, other: tuple[RedisStore, Told]) -> None:
    write_safely(store, told, *(record_of(f"r{number}")[0] for number in range(300)))
    assert other[0].load().requests.keys() >= {f"r{number}" for number in range(300)}


def test_other_keys_in_the_same_redis_are_left_alone(redis_server: RedisServer, store: RedisStore) -> None:
    names = ["lighttts:{", "lighttts:{x}:other", "lighttts:{\udcff}:request", "lighttts:lease:x", "{x}:request", "x"]
    with redis_server.client() as look:
        for name in names:
            look.set(name.encode(errors="surrogateescape"), "theirs")
        found = store.load()
        assert (found.requests, found.damaged) == ({}, {})
        assert all(look.exists(name.encode(errors="surrogateescape")) for name in names)


@pytest.mark.parametrize("request_id", ["a}b{c", "ü \n*", "}:request", "x" * 64])
def test_every_request_id_is_found_by_its_keys(request_id: str) -> None:
    for key in keys_of(request_id):
        assert request_of(key.encode()) == request_id
        assert key.startswith(EVERY_REQUEST.removesuffix("*"))


# ---- damage ----------------------------------------------------------------------------------------------------------


def put_wrong_type(look: redis.Redis, key: str) -> None:
    look.delete(key)
    look.rpush(key, "x")


DAMAGE = {
    "no request": lambda look, keys: look.delete(keys.request),
    "no synth": lambda look, keys: look.hdel(keys.request, "synth"),
    "no client": lambda look, keys: look.hdel(keys.request, "client"),
    "no owner": lambda look, keys: look.hdel(keys.request, "owner"),
    "no time": lambda look, keys: look.hset(keys.request, "received", "soon"),
    "state no text": lambda look, keys: look.hset(keys.request, "state", b"\xff"),
    "synth no msgpack": lambda look, keys: look.hset(keys.request, "synth", b"\xc1"),
    "synth no array": lambda look, keys: look.hset(keys.request, "synth", msgpack.packb({"a": 1})),
    "synth of numbers": lambda look, keys: look.hset(keys.request, "synth", msgpack.packb([1, 2])),
    "synth no message": lambda look, keys: look.hset(keys.request, "synth", packed([b"LT", b"x"])),
    "synth another message": lambda look, keys: look.hset(keys.request, "synth", packed(raw(tokens("r1", 2, 0)))),
    "synth of another": lambda look, keys: look.hset(keys.request, "synth", packed(raw(synth("r2")))),
    "nothing encoded": lambda look, keys: look.delete(keys.encoded),
    "encoded cut off": lambda look, keys: look.setrange(keys.encoded, 0, b"\x00\x00"),
    "encoded of another": lambda look, keys: look.set(keys.encoded, packed(raw(encoded("r2", 1)))),
    "hole in the log": lambda look, keys: look.hdel(keys.tokens, "0"),
    "no number in the log": lambda look, keys: look.hset(keys.tokens, "one", b"x"),
    "log shifted": lambda look, keys: look.hset(keys.tokens, "1", packed(raw(tokens("r1", 2, 0)))),
    "request of another type": lambda look, keys: put_wrong_type(look, keys.request),
    "encoded of another type": lambda look, keys: put_wrong_type(look, keys.encoded),
    "log of another type": lambda look, keys: put_wrong_type(look, keys.tokens),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_reported_and_removed_and_the_others_are_read(
    redis_server: RedisServer, told: Told, damage: str
) -> None:
    dead = open_store(redis_server.url, told, owner="dead")
    write_safely(dead, told, *record_of("r1"), *record_of("r2"))
    dead.close(WAIT_S)
    store = open_store(redis_server.url, told)
    with redis_server.client() as look:
        DAMAGE[damage](look, keys_of("r1"))
        found = store.load()
        assert found.requests.keys() == {"r2"}
        assert found.damaged.keys() == {"r1"}
        assert found.damaged["r1"]
        assert not look.exists(*keys_of("r1"))
    assert store.load().damaged == {}
    store.close(1.0)


def test_a_damaged_record_of_a_broker_that_lives_is_that_brokers_affair(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"))
    live(store, redis_server, "me")
    with redis_server.client() as look:
        look.hset(keys_of("r1").request, "synth", b"x")
        assert other[0].load().damaged.keys() == {"r1"}
        assert look.exists(keys_of("r1").request)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from([b"owner", b"client", b"synth", b"state", b"received"]), st.binary(max_size=40)),
    st.none() | st.binary(max_size=40),
    st.dictionaries(st.binary(max_size=3), st.binary(max_size=40), max_size=3),
)
def test_no_content_of_a_record_does_worse_than_damage(
    request: dict[bytes, bytes], message: bytes | None, log: dict[bytes, bytes]
) -> None:
    with pytest.raises(Damaged):
        saved("r1", Raw(request, message, log))


# ---- whose it is -----------------------------------------------------------------------------------------------------


def test_requests_of_a_broker_that_lives_cannot_be_claimed(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"))
    live(store, redis_server, "me")
    assert other[0].claim("r1") is Claim.FOREIGN
    assert store.claim("r1") is Claim.OURS


def test_a_broker_has_a_lease_from_the_start(redis_server: RedisServer, store: RedisStore) -> None:
    with redis_server.client() as look:
        wait_until(lambda: 0 < look.pttl(lease_of("me")) <= 1000 * QUICK.lease_s)


def test_a_lease_runs_out_unless_it_is_renewed(
    redis_server: RedisServer, told: Told, other: tuple[RedisStore, Told]
) -> None:
    store = open_store(redis_server.url, told, BRIEF)
    live(store, redis_server, "me")
    with redis_server.client() as look:
        assert 0 < look.pttl(lease_of("me")) <= 50
    write_safely(store, told, *record_of("r1"))
    wait_until(lambda: other[0].claim("r1") is Claim.OURS)
    store.close(1.0)


def test_one_other_gets_each_request_of_a_dead_broker(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"), *record_of("r2"))
    die(redis_server, "me")
    theirs, _ = other
    third = open_store(redis_server.url, told, owner="third")
    live(theirs, redis_server, "other")
    live(third, redis_server, "third")
    ours, foreign = Claim.OURS, Claim.FOREIGN
    claims = [theirs.claim("r1"), third.claim("r1"), third.claim("r2"), theirs.claim("r2")]
    assert claims == [ours, foreign, ours, foreign]
    check_r1(theirs.load().requests["r1"], "other")
    third.close(1.0)


def test_what_is_not_stored_cannot_be_claimed(store: RedisStore) -> None:
    assert store.claim("r1") is MemoryStore().claim("r1") is Claim.ABSENT


def test_a_former_owner_changes_nothing_any_more_and_learns_that_it_lost_the_request(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"))
    die(redis_server, "me")
    theirs, told_them = other
    assert theirs.claim("r1") is Claim.OURS
    live(theirs, redis_server, "other")
    store.write(SaveState("r1", "late"))
    assert told.lost.get(timeout=WAIT_S) == "r1"
    write_safely(store, told, AppendTokens("r1", 2, [b"late"]), DeleteRequest("r1"))
    check_r1(theirs.load().requests["r1"], "other")
    write_safely(theirs, told_them, SaveState("r1", "flushing"))
    assert theirs.load().requests["r1"].state == "flushing"
    write_safely(theirs, told_them, DeleteRequest("r1"))
    assert "r1" not in theirs.load().requests
    assert told.lost.empty()


def test_a_deletion_by_a_former_owner_deletes_nothing(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"))
    die(redis_server, "me")
    assert other[0].claim("r1") is Claim.OURS
    write_safely(store, told, DeleteRequest("r1"))
    assert "r1" in other[0].load().requests


def test_an_id_that_another_living_broker_uses_is_taken(
    redis_server: RedisServer, store: RedisStore, told: Told, other: tuple[RedisStore, Told]
) -> None:
    write_safely(store, told, *record_of("r1"))
    live(store, redis_server, "me")
    theirs, told_them = other
    theirs.write(record_of("r1")[0])
    _, error = told_them.stored.get(timeout=WAIT_S)
    assert isinstance(error, InvalidInput)
    assert error.field == "request_id"
    write_safely(theirs, told_them, SaveState("r1", "failed"), DeleteRequest("r1"))
    check_r1(store.load().requests["r1"], "me")
    assert told_them.lost.empty()


def test_a_claim_brings_a_lease_with_it(redis_server: RedisServer, store: RedisStore, told: Told) -> None:
    write_safely(store, told, *record_of("r1"))
    theirs = open_store(redis_server.url, Told(), owner="other")
    live(theirs, redis_server, "other")
    die(redis_server, "me")
    die(redis_server, "other")
    assert theirs.claim("r1") is Claim.OURS
    assert store.claim("r1") is Claim.FOREIGN
    theirs.close(1.0)


def test_a_store_that_closes_gives_its_lease_back(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told)
    live(store, redis_server, "me")
    store.close(WAIT_S)
    with redis_server.client() as look:
        assert not look.exists(lease_of("me"))


def test_any_write_keeps_all_of_a_record(redis_server: RedisServer, store: RedisStore, told: Told) -> None:
    write_safely(store, told, *record_of("r1"))
    with redis_server.client() as look:
        for key in keys_of("r1"):
            look.pexpire(key, 600_000)
        write_safely(store, told, AppendTokens("r1", 2, raw(tokens("r1", 2, 2))))
        assert all(look.pttl(key) > 600_000 for key in keys_of("r1"))
        for key in keys_of("r1"):
            look.pexpire(key, 600_000)
        store.claim("r1")
        assert all(look.pttl(key) > 600_000 for key in keys_of("r1"))


@pytest.mark.parametrize("ask", [RedisStore.load, lambda store: store.claim("r1")])
def test_a_redis_that_does_not_answer_is_said_to_who_asks(
    redis_server: RedisServer, store: RedisStore, ask: object
) -> None:
    live(store, redis_server, "me")
    redis_server.kill()
    with pytest.raises(Unavailable, match="start it"):
        ask(store)  # type: ignore[operator]


def test_memory_needs_no_lease() -> None:
    store: StateStore = MemoryStore()
    store.write(record_of("r1")[0])
    store.renew()
    assert store.claim("r1") is Claim.OURS
    assert store.trouble() == ""


# ---- released --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimer", ["the same", "another"])
def test_a_released_request_is_whole_for_the_broker_that_claims_it(
    store: RedisStore, told: Told, other: tuple[RedisStore, Told], claimer: str
) -> None:
    for write in (*record_of("r1"), ReleaseRequest("r1")):
        store.write(write)
    theirs, owner = (store, "me") if claimer == "the same" else (other[0], "other")
    if theirs is not store:
        write_safely(store, told)
    assert theirs.claim("r1") is Claim.OURS
    check_r1(theirs.load("r1").requests["r1"], owner)


def test_who_claims_what_it_has_just_released_owns_it(store: RedisStore, told: Told) -> None:
    for number in range(300):
        store.write(SaveRequest(f"r{number}", CLIENT, raw(synth(f"r{number}"))))
        store.write(ReleaseRequest(f"r{number}"))
        assert store.claim(f"r{number}") is Claim.OURS
    write_safely(store, told, SaveState("r299", "admitted"))
    assert store.load("r299").requests["r299"].state == "admitted"
    assert told.lost.empty()


def test_a_request_stays_only_for_a_while_after_its_release(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    write_safely(store, told, *record_of("r1"), ReleaseRequest("r1"))
    with redis_server.client() as look:
        assert all(0 < look.pttl(key) <= 1000 * PARKED_S for key in keys_of("r1"))
        assert store.claim("r1") is Claim.OURS
        assert all(look.pttl(key) > 1000 * PARKED_S for key in keys_of("r1"))


def test_what_is_written_after_the_release_changes_nothing(store: RedisStore, told: Told) -> None:
    write_safely(store, told, *record_of("r1"), ReleaseRequest("r1"), SaveState("r1", "late"), DeleteRequest("r1"))
    check_r1(store.load("r1").requests["r1"], "")
    assert told.lost.empty()


def test_memory_keeps_a_released_request_for_a_while() -> None:
    now = 0.0
    store = MemoryStore(lambda: now)
    for write in (*record_of("r1"), ReleaseRequest("r1"), *record_of("r2"), ReleaseRequest("r2")):
        store.write(write)
    now = PARKED_S - 0.1
    store.renew()
    assert store.claim("r1") is Claim.OURS
    now = PARKED_S
    store.renew()
    assert [*store.requests] == ["r1"]
    assert store.claim("r2") is Claim.ABSENT


def test_memory_keeps_a_bounded_number_of_released_requests_and_bytes() -> None:
    store = MemoryStore()
    for number in range(PARKED_MOST + 10):
        store.write(SaveRequest(str(number), CLIENT, [b""]))
        store.write(ReleaseRequest(str(number)))
    assert len(store.requests) == PARKED_MOST
    assert "9" not in store.requests
    for name in ("first", "second"):
        store.write(SaveRequest(name, CLIENT, [bytes(PARKED_BYTES // 2 + 1)]))
        store.write(ReleaseRequest(name))
    assert [*store.requests] == ["second"]


def test_a_new_request_has_nothing_of_a_released_one_with_its_id() -> None:
    store = MemoryStore()
    for write in (*record_of("r1"), ReleaseRequest("r1"), record_of("r1")[0]):
        store.write(write)
    assert (store.requests["r1"].encoded, store.requests["r1"].tokens) == ((), {})
    store.renew()
    assert store.claim("r1") is Claim.OURS
