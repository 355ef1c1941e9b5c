"""Redis slow, silent, away, back with nothing, back with less, and failed over."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from lighttts.broker.instructions import AppendTokens, DeleteRequest, SaveRequest
from lighttts.broker.keys import keys_of
from lighttts.broker.redis_store import RedisStore
from lighttts.errors import Unavailable
from tests.broker.harness import CLIENT, raw, tokens
from tests.broker.stores import QUICK, WAIT_S, Told, metric, open_store, record_of, write_safely
from tests.redis_server import RedisServer

TOKENS = [raw(tokens("r1", 2, seq)) for seq in range(5)]
NEVER = QUICK._replace(breaker_failures=1, breaker_s=600.0)
"""Given up at once, and not tried again while a test lasts."""


def log_of(server: RedisServer, request_id: str) -> list[int]:
    with server.client() as look:
        return sorted(int(seq) for seq in look.hkeys(keys_of(request_id).tokens))


# ---- slow and silent -------------------------------------------------------------------------------------------------


class SlowLink:
    """A way to a Redis on which every answer takes `delay` seconds. New connections lead to `path`."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.path, self.delay = path, 0.0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self.path))
            self._open += [near, far]
            for source, sink, slow in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._relay, args=(source, sink, slow), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if slow:
                    time.sleep(self.delay)
                    with contextlib.suppress(BlockingIOError):
                        data += source.recv(1 << 20, socket.MSG_DONTWAIT)
                sink.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            end.close()


@pytest.fixture
def slow_link(redis_server: RedisServer) -> Iterator[SlowLink]:
    link = SlowLink(redis_server.path)
    yield link
    link.close()


def test_a_redis_that_takes_a_second_for_each_answer_is_no_failing_one(
    redis_server: RedisServer, slow_link: SlowLink, told: Told
) -> None:
    store = open_store(slow_link.url, told)
    slow_link.delay = 1.0
    store.write(record_of("r1")[0])
    for seq in range(500):
        store.write(AppendTokens("r1", seq, TOKENS[0]))
    assert told.stored.get(timeout=WAIT_S) == ("r1", None)
    store.close(WAIT_S)
    assert log_of(redis_server, "r1") == [*range(500)]
    assert told.changed.empty()


def test_a_silent_redis_keeps_nobody_waiting_and_nothing_is_lost_when_it_answers_again(
    redis_server: RedisServer, told: Told
) -> None:
    store = open_store(f"{redis_server.url}?socket_timeout=0.1", told)
    write_safely(store, told, record_of("r1")[0])
    with redis_server.client() as look:
        look.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        for seq in range(3):
            store.write(AppendTokens("r1", seq, TOKENS[seq]))
        assert "overloaded, stopped" in told.changed.get(timeout=WAIT_S)
        store.write(SaveRequest("new", CLIENT, [b"m"]))
        assert isinstance(told.stored.get(timeout=WAIT_S)[1], Unavailable)
        store.write(AppendTokens("r1", 3, TOKENS[3]))
        look.execute_command("CLIENT", "UNPAUSE")
    assert told.changed.get(timeout=WAIT_S) == ""
    store.close(WAIT_S)
    assert log_of(redis_server, "r1") == [0, 1, 2, 3]


# ---- the breaker -----------------------------------------------------------------------------------------------------


def test_requests_that_come_before_the_breaker_opens_wait_for_it_to_decide(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(record_of("r1")[0])
        assert "NOREPLICAS" in told.changed.get(timeout=WAIT_S)
        request_id, error = told.stored.get(timeout=WAIT_S)
        assert request_id == "r1"
        assert isinstance(error, Unavailable)
        look.config_set("min-replicas-to-write", 0)
    assert told.changed.get(timeout=WAIT_S) == ""


def test_a_failure_that_passes_is_not_noticed(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, QUICK._replace(breaker_failures=50))
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(record_of("r1")[0])
        while "failures in a row" not in store.trouble():
            store.renew()
        look.config_set("min-replicas-to-write", 0)
    assert told.stored.get(timeout=WAIT_S) == ("r1", None)
    assert told.changed.empty()
    assert store.trouble() == ""
    store.close(1.0)


def test_who_is_refused_is_told_when_redis_is_tried_again(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, NEVER)
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    store.write(SaveRequest("late", CLIENT, [b"m"]))
    _, error = told.stored.get(timeout=WAIT_S)
    assert isinstance(error, Unavailable)
    assert error.retryable
    assert error.retry_after == pytest.approx(600.0, abs=WAIT_S)
    assert "it is tried again in" in store.trouble()
    store.close(0.0)


def test_while_the_breaker_is_open_redis_is_left_alone(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, NEVER)
    write_safely(store, told, record_of("r1")[0])
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    redis_server.start()
    store.write(AppendTokens("r1", 0, TOKENS[0]))
    store.close(0.0)
    with redis_server.client() as look:
        assert look.info("stats")["total_connections_received"] == 1


def test_breaker_failures_and_backlog_are_metrics(redis_server: RedisServer, told: Told) -> None:
    before = metric("light_tts_breaker_failures_total", target="redis")
    store = open_store(redis_server.url, told)
    assert metric("light_tts_breaker_state", target="redis") == 0
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    assert metric("light_tts_breaker_failures_total", target="redis") >= before + QUICK.breaker_failures
    assert metric("light_tts_breaker_state", target="redis") > 0
    redis_server.start()
    assert told.changed.get(timeout=WAIT_S) == ""
    assert metric("light_tts_breaker_state", target="redis") == 0
    store.close(1.0)


def test_refused_requests_leave_nothing_that_waits(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, NEVER)
    redis_server.kill()
    store.renew()
    told.changed.get(timeout=WAIT_S)
    for number in range(100):
        for write in (*record_of(f"r{number}"), DeleteRequest(f"r{number}")):
            store.write(write)
        told.stored.get(timeout=WAIT_S)
    assert len(store._backlog) == 0
    store.close(0.0)


# ---- what came back is not what was there ----------------------------------------------------------------------------


def test_a_request_whose_record_is_gone_when_redis_comes_back_empty_goes_on_without_one(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    given_up = metric("light_tts_records_given_up_total", why="lost")
    write_safely(store, told, *record_of("r1"))
    redis_server.kill()
    store.write(AppendTokens("r1", 2, TOKENS[2]))
    told.changed.get(timeout=WAIT_S)
    redis_server.start()
    assert told.changed.get(timeout=WAIT_S) == ""
    write_safely(store, told, AppendTokens("r1", 3, TOKENS[3]), *record_of("r2"))
    with redis_server.client() as look:
        assert not look.exists(*keys_of("r1"))
    assert log_of(redis_server, "r2") == [0, 1]
    assert metric("light_tts_records_given_up_total", why="lost") == given_up + 1
    write_safely(store, told, DeleteRequest("r1"), *record_of("r1"))
    assert log_of(redis_server, "r1") == [0, 1]


@pytest.mark.parametrize("part", ["request", "tokens"])
def test_a_record_of_which_redis_has_lost_a_part_is_removed_when_it_is_written_to(
    redis_server: RedisServer, store: RedisStore, told: Told, part: str
) -> None:
    write_safely(store, told, *record_of("r1"))
    with redis_server.client() as look:
        look.delete(getattr(keys_of("r1"), part))
        write_safely(store, told, AppendTokens("r1", 2, TOKENS[2]))
        assert not look.exists(*keys_of("r1"))
        write_safely(store, told, AppendTokens("r1", 3, TOKENS[3]))
        assert not look.exists(*keys_of("r1"))


def test_a_log_that_lacks_its_end_is_not_added_to(redis_server: RedisServer, store: RedisStore, told: Told) -> None:
    write_safely(store, told, *record_of("r1"))
    with redis_server.client() as look:
        look.hdel(keys_of("r1").tokens, "1")
        write_safely(store, told, AppendTokens("r1", 2, TOKENS[2]))
        assert not look.exists(*keys_of("r1"))


@pytest.mark.parametrize("key", keys_of("r1"))
def test_a_key_that_somebody_else_wrote_spoils_one_record_only(
    redis_server: RedisServer, store: RedisStore, told: Told, key: str
) -> None:
    write_safely(store, told, record_of("r1")[0])
    with redis_server.client() as look:
        look.delete(key)
        look.rpush(key, "something else")
        write_safely(store, told, AppendTokens("r1", 0, TOKENS[0]), DeleteRequest("r1"), *record_of("r2"))
        assert not look.exists(*keys_of("r1"))
    assert log_of(redis_server, "r2") == [0, 1]
    assert told.changed.empty()


def test_a_request_id_that_is_used_again_at_once_is_a_new_record(redis_server: RedisServer, told: Told) -> None:
    store = open_store(redis_server.url, told, QUICK._replace(breaker_failures=1000))
    write_safely(store, told, record_of("r1")[0])
    with redis_server.client() as look:
        look.config_set("min-replicas-to-write", 1)
        store.write(AppendTokens("r1", 7, TOKENS[0]))
        for write in (DeleteRequest("r1"), *record_of("r1")):
            store.write(write)
        look.config_set("min-replicas-to-write", 0)
    write_safely(store, told, AppendTokens("r1", 2, TOKENS[2]))
    assert log_of(redis_server, "r1") == [0, 1, 2]
    store.close(1.0)


def test_an_address_that_leads_to_another_redis_now_is_connected_to_anew(
    redis_server: RedisServer, slow_link: SlowLink, told: Told, tmp_path: Path
) -> None:
    store = open_store(slow_link.url, told)
    write_safely(store, told, *record_of("r1"))
    successor = RedisServer(tmp_path)
    successor.start()
    with redis_server.client() as look:
        look.replicaof("127.0.0.1", 1)
    slow_link.path = successor.path
    store.write(AppendTokens("r1", 2, TOKENS[2]))
    write_safely(store, told, *record_of("r2"))
    assert log_of(successor, "r2") == [0, 1]
    store.close(1.0)
    successor.kill()


def test_a_write_that_is_repeated_changes_nothing(redis_server: RedisServer, store: RedisStore, told: Told) -> None:
    write_safely(store, told, *record_of("r1"), *record_of("r1")[1:])
    assert log_of(redis_server, "r1") == [0, 1]
    with redis_server.client() as look:
        assert look.hget(keys_of("r1").tokens, "0") == msgpack.packb([bytes(part) for part in TOKENS[0]])


def test_scripts_that_redis_has_forgotten_are_given_to_it_again(
    redis_server: RedisServer, store: RedisStore, told: Told
) -> None:
    write_safely(store, told, record_of("r1")[0])
    with redis_server.client() as look:
        look.script_flush()
    write_safely(store, told, *record_of("r1")[1:])
    assert log_of(redis_server, "r1") == [0, 1]
    assert told.changed.empty()
