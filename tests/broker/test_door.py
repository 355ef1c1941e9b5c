"""The broker's door: everyone refused is counted and told of, and nobody can fill the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from lighttts import metrics
from lighttts.broker.app import App
from lighttts.broker.door import LOG_INTERVAL_S, Door
from lighttts.config import BrokerConfig
from lighttts.errors import ConfigError
from lighttts.transport.keyfiles import Role
from lighttts.transport.security import Refusal
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.peers import ANY, Peer, RunningApp, wait_for
from tests.transport.keys import Keyring

STRANGER = Refusal("workers", "unknown key", "10.0.0.9", "abcdefgh")
OPEN = {"clients": "tcp://0.0.0.0:0", "workers": ANY, "results": ANY, "metrics_port": None}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[EventDict]]:
    """What is logged is caught instead of silenced."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def logs(quiet: list[EventDict]) -> list[EventDict]:
    return quiet


def counted() -> float:
    return metrics.connections_refused.labels("workers")._value.get()


def test_a_refusal_is_logged_with_all_that_helps_to_find_its_key(logs: list[EventDict]) -> None:
    Door(lambda: 0.0).refused(STRANGER)
    (line,) = logs
    assert line["log_level"] == "warning"
    assert Refusal(line["socket"], line["why"], line["address"], line["key"]) == STRANGER


def test_many_refusals_are_counted_one_by_one_but_logged_once_in_a_while(logs: list[EventDict]) -> None:
    now, before = 0.0, counted()
    door = Door(lambda: now)
    for _ in range(1000):
        door.refused(STRANGER)
    now += LOG_INTERVAL_S
    door.refused(STRANGER)
    assert counted() - before == 1001
    assert [line["more"] for line in logs] == [0, 999]


def test_a_broken_key_file_is_an_error_not_a_visitor(logs: list[EventDict]) -> None:
    before = counted()
    Door(lambda: 0.0).refused(Refusal("workers", "gpu.key is not a public worker key"))
    assert [(line["log_level"], line["why"]) for line in logs] == [("error", "gpu.key is not a public worker key")]
    assert counted() == before


def test_a_broker_with_keys_serves_who_has_one_and_tells_of_who_has_not(tmp_path: Path, logs: list[EventDict]) -> None:
    keys = Keyring(tmp_path)
    alice, mallory = keys.admitted(Role.CLIENT, "alice"), keys.stranger(Role.CLIENT, "mallory")
    with (
        RunningApp(keys=keys.broker) as running,
        Sockets(SocketOptions(linger_ms=0), mallory) as outside,
        Sockets(security=alice) as inside,
    ):
        stranger = outside.dealer(running.endpoints.clients)
        wait_for(lambda: bool(_refused(logs)), Peer(inside, running.endpoints.clients))
        assert not stranger.socket.poll(0)
    assert _refused(logs)[0]["key"] == mallory.folder.pair(Role.CLIENT).public.decode()[:8]
    assert keys.broker.pair(Role.BROKER).secret.decode() not in str(logs)


def _refused(logs: list[EventDict]) -> list[EventDict]:
    return [line for line in logs if line["event"] == "connection refused"]


def test_a_broker_does_not_listen_on_a_network_without_keys() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*security\.keys"):
        App(BrokerConfig(**OPEN))  # type: ignore[arg-type]


def test_a_broker_that_is_told_to_listen_to_everybody_says_so_once(logs: list[EventDict]) -> None:
    with RunningApp(options=SocketOptions(allow_plain=True), **OPEN):
        pass
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    assert "security.keys" in warning["event"]
    assert [endpoint.rpartition(":")[0] for endpoint in warning["endpoints"]] == ["tcp://0.0.0.0"]


def test_a_broker_with_keys_or_on_this_machine_alone_has_nothing_to_warn_of(
    tmp_path: Path, logs: list[EventDict]
) -> None:
    with RunningApp(keys=Keyring(tmp_path).broker, **OPEN):
        pass
    with RunningApp():
        pass
    assert not [line for line in logs if line["log_level"] == "warning"]


def test_a_broker_without_its_key_does_not_start(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    keys.broker.secret_file(Role.BROKER).chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        App(BrokerConfig(clients=ANY, workers=ANY, results=ANY, metrics_port=None), keys=keys.broker)
