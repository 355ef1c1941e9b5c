"""`lighttts-cli keys`: what it writes works, replaces nothing unasked, and shows no secret."""

from __future__ import annotations

import itertools
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lighttts.cli.stack import private_commands
from lighttts.client import Client
from lighttts.config import load_config
from lighttts.errors import AccessDenied
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.sockets import SocketOptions
from tests.broker.peers import RunningApp
from tests.cli.conftest import Done, Run


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """A broker in a thread must not print while pytest exchanges standard output: that ends the interpreter."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Keys:
    """`lighttts-cli keys` on one broker's folder."""

    def __init__(self, run: Run, path: Path) -> None:
        self._run = run
        self.path = path
        self.folder = KeyFolder(path)

    def __call__(self, *arguments: str) -> Done:
        return self._run("keys", *arguments, "--keys", str(self.path))

    def done(self, *arguments: str) -> str:
        """What it says when it succeeds."""
        done = self(*arguments)
        assert (done.code, done.err) == (0, "")
        return done.out.decode()


@pytest.fixture
def keys(run: Run, tmp_path: Path) -> Keys:
    return Keys(run, tmp_path / "keys")


@pytest.fixture
def created(keys: Keys) -> Keys:
    keys.done("create")
    return keys


@pytest.fixture
def broker(created: Keys) -> Iterator[str]:
    """A running broker's address for clients."""
    with RunningApp(keys=created.folder, options=SocketOptions(handshake_ms=500)) as running:
        yield running.endpoints.clients


def gets_in(broker: str, keys: Path) -> bool:
    with Client(broker, keys=keys, connect_timeout=1.5) as client:
        try:
            return bool(client.status().broker)
        except AccessDenied:
            return False


def test_create_makes_all_that_one_machine_needs(created: Keys, broker: str) -> None:
    assert gets_in(broker, created.path)
    secrets = sorted(path.name for path in created.path.glob("*.secret"))
    assert secrets == ["broker.secret", "client.secret", "worker.secret"]
    assert list(created.folder.exposed()) == []
    assert created.folder.allowed_key(Role.WORKER, "local") == created.folder.pair(Role.WORKER).public


def test_create_touches_no_folder_that_holds_something(keys: Keys) -> None:
    keys.path.mkdir()
    (keys.path / "diary").write_text("mine")
    done = keys("create")
    assert (done.code, done.out) == (78, b"")
    assert "not an empty folder" in done.err
    assert os.listdir(keys.path) == ["diary"]


def test_a_key_is_added_used_rotated_and_removed_while_the_broker_runs(
    created: Keys, broker: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "alice", tmp_path / "alice-2"
    assert "let in from now on" in created.done("add", "client", "alice", "--out", str(first))
    assert sorted(os.listdir(first)) == ["broker.key", "client.secret"]
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert gets_in(broker, first)
    created.done("rotate", "client", "alice", "--out", str(second))
    assert gets_in(broker, second)
    assert not gets_in(broker, first)
    assert "refused from now on" in created.done("remove", "client", "alice")
    assert not gets_in(broker, second)
    assert gets_in(broker, created.path)


def test_a_client_and_a_worker_may_share_a_folder(created: Keys, tmp_path: Path) -> None:
    for role in ("client", "worker"):
        created.done("add", role, "box", "--out", str(tmp_path / "box"))
    assert sorted(os.listdir(tmp_path / "box")) == ["broker.key", "client.secret", "worker.secret"]


def test_list_shows_names_and_the_start_of_public_keys(created: Keys, tmp_path: Path) -> None:
    created.done("add", "client", "alice", "--out", str(tmp_path / "alice"))
    created.folder.allowed_file(Role.WORKER, "local").write_text("oops")
    heads, alice, local, broken = created.done("list").splitlines()
    assert heads.split() == ["ROLE", "NAME", "KEY"]
    assert alice.split() == ["client", "alice", KeyFolder(tmp_path / "alice").pair(Role.CLIENT).public.decode()[:8]]
    assert local.split()[:2] == ["client", "local"]
    assert broken.split()[:3] == ["worker", "local", "unusable:"]


def test_no_secret_is_ever_shown(created: Keys, tmp_path: Path) -> None:
    said = [created.done("add", "client", "alice", "--out", str(tmp_path / "a"))]
    said += [created.done("rotate", "client", "alice", "--out", str(tmp_path / "a")), created.done("rotate", "broker")]
    said += [created.done("list"), created.done("remove", "client", "alice")]
    for folder in (created.folder, KeyFolder(tmp_path / "a")):
        for path in folder.path.glob("*.secret"):
            secret = path.read_text().split("\n")[1]
            assert len(secret) == 40
            assert not any(secret[:8] in line for line in said)


def test_rotating_the_broker_s_key_keeps_the_list(created: Keys) -> None:
    before = created.folder.pair(Role.BROKER)
    listed = created.done("list")
    assert "restart it" in created.done("rotate", "broker")
    assert created.folder.pair(Role.BROKER) != before
    assert created.folder.broker_key() == created.folder.pair(Role.BROKER).public
    assert created.done("list") == listed


def test_a_name_is_given_once(created: Keys, tmp_path: Path) -> None:
    created.done("add", "client", "alice", "--out", str(tmp_path / "a"))
    listed = created.done("list")
    done = created("add", "client", "alice", "--out", str(tmp_path / "b"))
    assert (done.code, done.out) == (78, b"")
    assert "rotate" in done.err
    assert not (tmp_path / "b").exists()
    assert created.done("list") == listed


def test_a_secret_that_exists_is_not_replaced_by_another_member_s(created: Keys, tmp_path: Path) -> None:
    created.done("add", "client", "alice", "--out", str(tmp_path / "a"))
    before = KeyFolder(tmp_path / "a").pair(Role.CLIENT)
    done = created("add", "client", "bob", "--out", str(tmp_path / "a"))
    assert (done.code, "exists already" in done.err) == (78, True)
    assert KeyFolder(tmp_path / "a").pair(Role.CLIENT) == before
    assert "bob" not in created.done("list")


def test_the_folder_of_another_broker_is_not_written_to(created: Keys, run: Run, tmp_path: Path) -> None:
    other = Keys(run, tmp_path / "other")
    other.done("create")
    done = created("add", "client", "alice", "--out", str(other.path))
    assert (done.code, "another broker" in done.err) == (78, True)
    assert "alice" not in created.done("list")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add",), "client NAME, or worker NAME"),
        (("add", "client"), "client NAME, or worker NAME"),
        (("add", "broker", "b", "--out", "o"), "client NAME, or worker NAME"),
        (("add", "client", "alice"), "--out FOLDER"),
        (("rotate", "client", "local"), "--out FOLDER"),
        (("create", "client"), "no further words"),
        (("list", "worker"), "no further words"),
    ],
)
def test_what_is_missing_is_said(created: Keys, arguments: tuple[str, ...], says: str) -> None:
    done = created(*arguments)
    assert (done.code, done.out) == (65, b"")
    assert says in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "client", "../alice", "--out", "o"), "cannot name a key"),
        (("rotate", "client", "alice", "--out", "o"), "no client key is called alice"),
        (("remove", "worker", "alice"), "no worker key is called alice; there are: local"),
    ],
)
def test_what_cannot_be_is_refused_and_writes_nothing(
    created: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = created(*arguments)
    assert (done.code, done.out) == (78, b"")
    assert says in done.err
    assert not (tmp_path / "o").exists()


def test_without_a_folder_it_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LIGHTTTS_")]:
        monkeypatch.delenv(name)
    done = run("keys", "list")
    assert (done.code, "--keys DIR" in done.err) == (65, True)


def test_the_configured_folder_is_used(created: Keys, run: Run) -> None:
    done = run("keys", "list", "--set", f"security.keys={created.path}")
    assert done.out.decode() == created.done("list")


def test_its_help_teaches_each_action(run: Run) -> None:
    done = run("keys", "--help")
    assert done.code == 0
    for word in ("create", "add ROLE NAME", "list", "rotate ROLE NAME", "remove ROLE NAME", "scp", "--keys"):
        assert word in done.out.decode()


# ---- the other commands ----


def test_commands_speak_to_a_broker_with_keys(created: Keys, broker: str, run: Run) -> None:
    done = run("status", "--broker", broker, "--keys", str(created.path))
    assert (done.code, done.err) == (0, "")
    assert b"no workers" in done.out
    configured = run("voices", "--broker", broker, "--set", f"security.keys={created.path}")
    assert (configured.code, configured.err) == (0, "")


def test_a_command_that_is_not_let_in_says_so(created: Keys, broker: str, run: Run) -> None:
    done = run("status", "--broker", broker)
    assert (done.code, done.out) == (77, b"")
    assert "does not let this client in" in done.err
    assert "--keys DIR" in done.err


def test_a_private_stack_needs_no_keys_though_others_are_configured(tmp_path: Path) -> None:
    for command in private_commands(["--set", f"security.keys={tmp_path / 'none'}"], tmp_path):
        words = command["arguments"]
        settings = [setting for flag, setting in itertools.pairwise(words) if flag == "--set"]
        assert load_config(overrides=settings, environ={}).security.keys is None
