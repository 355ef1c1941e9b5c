"""`lighttts-cli doctor` on Redis: each fault is told in words, with what mends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lighttts.broker.redis_faults import ACL
from lighttts.cli import checks
from lighttts.cli.checks import Finding, Level
from lighttts.config import load_config
from tests.broker.certificates import Authority
from tests.broker.test_redis_access import free_port, tls_options
from tests.redis_server import RedisServer

Start = Callable[..., RedisServer]


def examine(url: str) -> list[Finding]:
    return [*checks.redis(load_config(overrides=[f"broker.state={url}"], environ={}))]


def problem(url: str) -> str:
    """The text of the only finding, a problem."""
    (finding,) = examine(url)
    assert finding.level is Level.PROBLEM
    assert "secret" not in finding.text
    return finding.text


def test_a_redis_that_does_all_a_broker_needs_is_well_and_left_as_it_was(start_redis: Start) -> None:
    server = start_redis()
    assert [finding.level for finding in examine(server.url)] == [Level.OK]
    with server.client() as look:
        assert look.dbsize() == 0


def test_memory_is_well_without_redis() -> None:
    assert [finding.level for finding in examine("memory://")] == [Level.OK]


def test_without_the_package_nothing_is_said_that_is_not_said_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("lighttts.cli.redis_check", "lighttts.broker.redis"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    assert examine("redis://127.0.0.1:1") == []


@pytest.mark.parametrize("url", ["unix:///nowhere/redis.sock", "redis+sentinel://:secret@127.0.0.1:1/speech"])
def test_a_redis_that_cannot_be_reached_is_to_be_started(url: str) -> None:
    text = problem(url)
    assert "does not answer" in text
    assert "start it, or correct broker.state" in text


def test_an_address_that_is_none_is_told() -> None:
    assert "unknown option 'tls'" in problem("redis://:secret@box?tls=yes")


@pytest.mark.parametrize("user", ["", ":wrong-secret"])
def test_a_wrong_password_or_none(start_redis: Start, user: str) -> None:
    server = start_redis("--port", "0", "--requirepass", "word")
    assert "give the right user and password in broker.state" in problem(f"unix://{user}@{server.path}")


@pytest.mark.parametrize("missing", ["-@scripting", "-@write", "-scan", "resetkeys", "-hgetall"])
def test_a_right_that_is_missing(start_redis: Start, missing: str) -> None:
    server = start_redis()
    with server.client() as look:
        look.execute_command("ACL", "SETUSER", "speech", "on", ">secret", *ACL.split(), missing)
    text = problem(f"unix://speech:secret@{server.path}")
    assert "does not take what the broker writes" in text
    assert f"ACL SETUSER <user> {ACL}" in text


def test_a_right_to_look_at_memory_is_worth_having(start_redis: Start) -> None:
    server = start_redis()
    with server.client() as look:
        look.execute_command("ACL", "SETUSER", "speech", "on", ">secret", *ACL.split(), "-info")
    fine, note = examine(f"unix://speech:secret@{server.path}")
    assert (fine.level, note.level) == (Level.OK, Level.NOTE)
    assert "does not tell its memory" in note.text


def test_a_read_only_replica(start_redis: Start) -> None:
    server = start_redis()
    with server.client() as look:
        look.replicaof("127.0.0.1", 1)
    assert "read-only replica: give its master's address in broker.state" in problem(server.url)


def test_tls_spoken_on_one_side_only(start_redis: Start, tmp_path: Path) -> None:
    start_redis(*tls_options(Authority(tmp_path), port := free_port()))
    assert "it speaks TLS: write rediss://" in problem(f"redis://127.0.0.1:{port}")


def test_plain_spoken_on_one_side_only(start_redis: Start) -> None:
    start_redis("--port", str(port := free_port()))
    url = f"rediss://127.0.0.1:{port}?socket_timeout=0.2&socket_connect_timeout=0.2"
    assert "it does not speak TLS: write redis://" in problem(url)


def test_a_certificate_that_is_not_trusted(start_redis: Start, tmp_path: Path) -> None:
    start_redis(*tls_options(Authority(tmp_path), port := free_port()))
    assert "add ?ssl_ca_certs=" in problem(f"rediss://127.0.0.1:{port}")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_policy_that_may_drop_keys(start_redis: Start, policy: str) -> None:
    server = start_redis("--port", "0", "--maxmemory", "100mb", "--maxmemory-policy", policy)
    fine, finding = examine(server.url)
    assert (fine.level, finding.level) == (Level.OK, Level.PROBLEM)
    assert f"may drop the state of live requests when its memory is full ({policy})" in finding.text
    assert "set maxmemory-policy noeviction" in finding.text
    with server.client() as look:
        look.config_set("maxmemory", 0)
    assert [finding.level for finding in examine(server.url)] == [Level.OK]


def test_memory_that_is_nearly_full(start_redis: Start) -> None:
    server = start_redis()
    with server.client() as look:
        look.set("x", bytes(8 << 20))
        look.config_set("maxmemory", round(1.08 * look.info("memory")["used_memory"]))
        fine, finding = examine(server.url)
        assert (fine.level, finding.level) == (Level.OK, Level.PROBLEM)
        assert "little memory left" in finding.text
        assert "MiB: raise maxmemory" in finding.text


def test_memory_that_is_full(start_redis: Start) -> None:
    server = start_redis()
    with server.client() as look:
        look.set("x", bytes(2 << 20))
        look.config_set("maxmemory", 1 << 20)
    assert "its memory is full: raise maxmemory" in problem(server.url)
