"""What is stored of requests, in memory and in a real Redis that also goes away."""

from __future__ import annotations

import time

import msgpack
import pytest

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveRequest, SaveState
from lighttts.broker.keys import keys_of
from lighttts.broker.redis_store import RedisStore
from lighttts.broker.state import Claim, MemoryStore
from lighttts.errors import ConfigError, Unavailable
from tests.broker.harness import CLIENT, encoded, raw, synth, tokens
from tests.broker.stores import QUICK, WAIT_S, Told, open_store, record_of, write_safely
from tests.redis_server import RedisServer

WRITES = record_of("r1")


def test_memory_keeps_a_request_until_it_is_deleted() -> None:
    store = MemoryStore()
    for write in WRITES:
        store.write(write)
    saved = store.requests["r1"]
    assert (saved.client, saved.synth, saved.state) == (CLIENT, raw(synth()), "decoding")
    assert saved.encoded == raw(encoded("r1", 1))
    assert saved.tokens == {0: raw(tokens("r1", 2, 0)), 1: raw(tokens("r1", 2, 1, last=True))}
    store.write(DeleteRequest("r1"))
    store.write(DeleteRequest("never was"))
    assert not store.requests


def test_redis_holds_a_request_under_its_keys_each_with_a_time_to_live(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    write_safely(store, told, *WRITES)
    keys = keys_of("r1")
    with redis_server.client() as look:
        record = look.hgetall(keys.request)
        assert (record[b"client"], record[b"state"]) == (CLIENT, b"decoding")
        assert msgpack.unpackb(record[b"synth"]) == raw(synth())
        assert float(record[b"received"]) == pytest.approx(time.time(), abs=WAIT_S)
        assert msgpack.unpackb(look.get(keys.encoded)) == raw(encoded("r1", 1))
        log = {int(seq): msgpack.unpackb(frames) for seq, frames in look.hgetall(keys.tokens).items()}
        assert log == {0: raw(tokens("r1", 2, 0)), 1: raw(tokens("r1", 2, 1, last=True))}
        assert all(0 < look.pttl(key) <= 3600_000 for key in keys)


def test_nothing_is_left_in_redis_of_a_deleted_request(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    write_safely(store, told, *WRITES, DeleteRequest("r1"))
    store.close(5.0)
    with redis_server.client() as look:
        assert look.keys("*") == []


@pytest.mark.parametrize("request_id", ["a}b{c", "ü \n*", "x" * 64])
def test_any_request_id_makes_keys_of_its_own(
    redis_server: RedisServer, store: RedisStore, told: Told, request_id: str
) -> None:
    write_safely(store, told, SaveRequest(request_id, CLIENT, [b"m"]), AppendTokens(request_id, 0, [b"t"]), *WRITES)
    with redis_server.client() as look:
        assert look.hget(keys_of(request_id).request, "client") == CLIENT
        assert look.hkeys(keys_of(request_id).tokens) == [b"0"]
        assert len(look.hkeys(keys_of("r1").tokens)) == 2


def test_a_record_is_confirmed_when_redis_has_it(redis_server: RedisServer, store: RedisStore, told: Told) -> None:
    store.write(WRITES[0])
    assert told.stored.get(timeout=WAIT_S) == ("r1", None)
    with redis_server.client() as look:
        assert look.exists(keys_of("r1").request)


def test_what_is_queued_is_written_before_the_store_closes(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told)
    store.write(WRITES[0])
    for seq in range(2000):
        store.write(AppendTokens("r1", seq, [b"frames"]))
    store.close(WAIT_S)
    with redis_server.client() as look:
        assert look.hlen(keys_of("r1").tokens) == 2000


def test_a_redis_that_fails_for_a_while_is_reported_and_loses_no_write_of_a_live_request(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    write_safely(store, told, *WRITES[:2])
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(AppendTokens("r1", 0, [b"first"]))
        assert str(redis_server.path) in told.changed.get(timeout=WAIT_S)
        store.write(AppendTokens("r1", 1, [b"second"]))
        look.config_set("min-replicas-to-write", 0)
        assert told.changed.get(timeout=WAIT_S) == ""
        write_safely(store, told)
        log = look.hgetall(keys_of("r1").tokens)
    assert log == {b"0": msgpack.packb([b"first"]), b"1": msgpack.packb([b"second"])}


def test_new_requests_learn_at_once_that_their_record_is_not_safe(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    redis_server.kill()
    for number in range(3):
        store.write(SaveRequest(f"r{number}", CLIENT, [b"m"]))
    refused = dict(told.stored.get(timeout=WAIT_S) for _ in range(3))
    assert refused.keys() == {"r0", "r1", "r2"}
    assert all(isinstance(error, Unavailable) and error.retryable for error in refused.values())
    redis_server.start()
    told.changed.get(timeout=WAIT_S)
    assert told.changed.get(timeout=WAIT_S) == ""
    store.close(WAIT_S)
    with redis_server.client() as look:
        assert look.keys("*") == []


def test_a_request_that_comes_while_redis_is_away_is_not_kept_waiting(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    store.write(SaveRequest("late", CLIENT, [b"m"]))
    request_id, error = told.stored.get(timeout=WAIT_S)
    assert request_id == "late"
    assert isinstance(error, Unavailable)


def test_a_redis_that_refuses_writes_is_a_failing_store(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(WRITES[0])
        _, error = told.stored.get(timeout=WAIT_S)
        assert isinstance(error, Unavailable)
        assert "NOREPLICAS" in told.changed.get(timeout=WAIT_S)
        look.config_set("min-replicas-to-write", 0)


def test_a_full_queue_gives_up_one_requests_record_and_keeps_the_others(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, QUICK._replace(writes=6))
    write_safely(store, told, SaveRequest("big", CLIENT, [b"m"]), SaveRequest("small", CLIENT, [b"m"]))
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(SaveState("small", "failed once"))
        told.changed.get(timeout=WAIT_S)
        for seq in range(10):
            store.write(AppendTokens("big", seq, [b"frames"]))
        look.config_set("min-replicas-to-write", 0)
        assert told.changed.get(timeout=WAIT_S) == ""
        assert store.claim("big") is Claim.ABSENT
        write_safely(store, told, AppendTokens("big", 10, [b"frames"]))
        assert not look.exists(*keys_of("big"))
        assert look.hget(keys_of("small").request, "state") == b"failed once"
        write_safely(store, told, DeleteRequest("big"), SaveRequest("big", CLIENT, [b"of another request"]))
        assert look.exists(keys_of("big").request)
    store.close(WAIT_S)


def test_a_store_that_closes_while_redis_is_away_does_not_wait_for_ever(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    store.close(0.1)
    assert not store._thread.is_alive()


def test_an_unreachable_redis_is_one_sentence_that_says_what_to_do(told: Told) -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.sock cannot be reached .*start it, or set broker.state"):
        RedisStore("unix:///tmp/nowhere.sock", 1.0, "me", told.events)


def test_a_redis_that_wants_a_password_is_a_matter_of_configuration(redis_server: RedisServer, told: Told) -> None:
    with redis_server.client() as look:
        look.config_set("requirepass", "secret")
        with pytest.raises(ConfigError, match="does not let the broker in") as caught:
            RedisStore(f"unix://:wrong@{redis_server.path}", 1.0, "me", told.events)
        assert "wrong" not in caught.value.text
        look.config_set("requirepass", "")


@pytest.mark.parametrize("url", ["redis://host:notaport/0", "redis://[::1/0", "redis://host/db?socket_timeout=soon"])
def test_a_url_that_is_none_is_a_matter_of_configuration(url: str, told: Told) -> None:
    with pytest.raises(ConfigError, match="not a Redis address"):
        RedisStore(url, 1.0, "me", told.events)
