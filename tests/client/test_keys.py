"""Clients with keys: they speak to their broker alone, and learn when it does not let them in."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lighttts.broker.app import App
from lighttts.client import AsyncClient, Client
from lighttts.client.absence import Absence
from lighttts.errors import AccessDenied, ConfigError, LightTTSError, Unavailable
from lighttts.transport.keyfiles import Role, new_pair
from lighttts.transport.security import Proof
from lighttts.transport.sockets import SocketOptions
from tests.broker.peers import RunningApp
from tests.client.test_bare_install import FORBIDDEN
from tests.transport.keys import Keyring


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """A broker in a thread must not print while pytest exchanges standard output: that ends the interpreter."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def alice(keys: Keyring) -> Proof:
    return keys.admitted(Role.CLIENT, "alice")


@pytest.fixture
def broker(keys: Keyring) -> Iterator[App]:
    # A refusal is told when the broker hangs up.
    with RunningApp(keys=keys.broker, options=SocketOptions(handshake_ms=500)) as running:
        yield running.app


def denial(broker: App, keys: Path | None) -> LightTTSError:
    """What a client is told that does not get in."""
    with Client(broker.endpoints.clients, keys=keys, connect_timeout=1.5) as client:
        with pytest.raises(LightTTSError) as caught:
            client.status()
        return caught.value


def test_both_clients_get_in_with_an_allowed_key(broker: App, alice: Proof) -> None:
    async def ask() -> str:
        async with AsyncClient(broker.endpoints.clients, keys=alice.folder.path) as client:
            return (await client.status()).broker

    with Client(broker.endpoints.clients, keys=str(alice.folder.path)) as client:
        assert client.status().broker == asyncio.run(ask())


def test_a_client_without_keys_learns_that_it_needs_them(broker: App) -> None:
    error = denial(broker, None)
    assert isinstance(error, AccessDenied)
    assert "--keys" in error.text
    assert not error.retryable


def test_a_client_whose_key_is_unknown_learns_it(broker: App, keys: Keyring, alice: Proof) -> None:
    stranger = keys.stranger(Role.CLIENT, "mallory")
    error = denial(broker, stranger.folder.path)
    assert isinstance(error, AccessDenied)
    assert stranger.folder.pair(Role.CLIENT).secret.decode() not in error.text
    with Client(broker.endpoints.clients, keys=alice.folder.path) as client:
        assert client.status()


def test_a_client_does_not_speak_to_another_broker(broker: App, alice: Proof) -> None:
    alice.folder.store_broker_key(new_pair().public, replace=True)
    assert isinstance(denial(broker, alice.folder.path), AccessDenied)


def test_a_client_whose_key_is_allowed_later_gets_in_then(broker: App, keys: Keyring) -> None:
    late = keys.stranger(Role.CLIENT, "late")
    with Client(broker.endpoints.clients, keys=late.folder.path, connect_timeout=1.5) as client:
        with pytest.raises(AccessDenied):
            client.status()
        keys.broker.allow(Role.CLIENT, "late", late.folder.pair(Role.CLIENT).public)
        for _ in range(20):
            try:
                assert client.status()
                return
            except AccessDenied:
                continue
    raise AssertionError("never let in")


def test_a_key_that_cannot_be_used_is_told_before_anything_is_sent(broker: App, alice: Proof, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no secret client key"):
        Client(broker.endpoints.clients, keys=tmp_path / "none")
    alice.folder.secret_file(Role.CLIENT).chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        Client(broker.endpoints.clients, keys=alice.folder.path)


def test_a_broker_that_refused_and_is_gone_for_a_while_is_absent() -> None:
    absence = Absence(["tcp://here:1"])
    assert isinstance(absence.error(0.0), Unavailable)
    absence.refused("tcp://here:1", 10.0)
    assert isinstance(absence.error(10.0 + absence.refused_for), AccessDenied)
    assert isinstance(absence.error(10.1 + absence.refused_for), Unavailable)


def test_what_is_told_of_several_brokers_names_those_that_refuse_or_else_all() -> None:
    absence = Absence(["tcp://a:1", "tcp://b:1", "tcp://c:1"])
    assert "no broker answers at tcp://a:1, tcp://b:1 or tcp://c:1" in absence.error(0.0).text
    absence.refused("tcp://b:1", 10.0)
    assert "the broker at tcp://b:1 does not let this client in" in absence.error(10.0).text


PROGRAM = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not in a bare install")

FORBIDDEN = set(sys.argv[3].split(","))
sys.meta_path.insert(0, Forbid())

from lighttts.client import Client

with Client(sys.argv[1], keys=sys.argv[2]) as client:
    print(client.status().store)
"""


def test_a_bare_install_can_use_keys(broker: App, alice: Proof) -> None:
    arguments = [broker.endpoints.clients, str(alice.folder.path), ",".join(FORBIDDEN)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("memory\n", "")
