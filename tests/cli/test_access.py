"""`lighttts-cli doctor` on keys: what keeps members out, what lets others in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lighttts.cli import access
from lighttts.cli.checks import Finding, Level
from lighttts.config import load_config
from lighttts.transport.keyfiles import KeyFolder, Role, new_pair
from lighttts.transport.sockets import SocketOptions
from tests.broker.peers import RunningApp
from tests.cli.conftest import Run

TINY = Path(__file__).resolve().parents[1] / "golden/cosyvoice2-tiny"


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """A broker in a thread must not print while pytest exchanges standard output: that ends the interpreter."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def found(*overrides: str) -> list[Finding]:
    return list(access.access(load_config(overrides=overrides, environ={})))


def problems(folder: KeyFolder) -> list[str]:
    findings = found(f"security.keys={folder.path}")
    if any(finding.level is Level.OK for finding in findings):
        assert len(findings) == 1
    return [finding.text for finding in findings if finding.level is Level.PROBLEM]


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> KeyFolder:
    path = tmp_path / "keys"
    assert run("keys", "create", "--keys", str(path)).code == 0
    return KeyFolder(path)


def test_a_whole_folder_is_well(folder: KeyFolder) -> None:
    (finding,) = found(f"security.keys={folder.path}")
    assert finding.level is Level.OK
    assert "1 clients allowed, 1 workers allowed" in finding.text


def test_a_client_s_folder_is_well(tmp_path: Path, folder: KeyFolder, run: Run) -> None:
    run("keys", "add", "client", "alice", "--keys", str(folder.path), "--out", str(tmp_path / "alice"))
    (finding,) = found(f"security.keys={tmp_path / 'alice'}")
    assert (finding.level, finding.text) == (Level.OK, f"keys in {tmp_path / 'alice'}: client's own")


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "no public broker key" in problems(KeyFolder(tmp_path))[0]
    assert "no secret key" in problems(KeyFolder(tmp_path))[1]


@pytest.mark.parametrize("role", Role)
def test_a_secret_that_others_can_read_is_a_problem(folder: KeyFolder, role: Role) -> None:
    folder.secret_file(role).chmod(0o640)
    assert f"chmod 600 {folder.secret_file(role)}" in problems(folder)[0]


def test_a_machine_s_own_key_that_its_broker_does_not_know_is_a_problem(folder: KeyFolder) -> None:
    folder.store(Role.WORKER, "local", new_pair(), replace=True)
    (problem,) = problems(folder)
    assert "does not let in" in problem
    assert "worker.secret" in problem


def test_a_damaged_or_missing_list_is_a_problem(folder: KeyFolder) -> None:
    folder.allowed_file(Role.CLIENT, "local").write_text("oops")
    assert "not a public client key" in problems(folder)[0]
    folder.allowed_folder(Role.WORKER).rename(folder.path / "elsewhere")
    assert "allowed keys" in problems(folder)[1]


def test_on_this_machine_alone_no_keys_are_needed() -> None:
    (finding,) = found()
    assert finding.level is Level.OK


def test_a_network_without_keys_is_a_problem_and_named(folder: KeyFolder) -> None:
    (finding,) = found("broker.clients=tcp://0.0.0.0:5570", "broker.workers=ipc:///run/workers")
    assert finding.level is Level.PROBLEM
    assert "broker.clients (tcp://0.0.0.0:5570)" in finding.text
    assert "keys create" in finding.text
    assert "broker.workers" not in finding.text
    with_keys = found("broker.clients=tcp://0.0.0.0:5570", f"security.keys={folder.path}")
    assert [finding.level for finding in with_keys] == [Level.OK]


def test_a_network_that_was_opened_on_purpose_is_worth_knowing() -> None:
    (finding,) = found("broker.clients=tcp://0.0.0.0:5570", "security.allow_plain=true")
    assert finding.level is Level.NOTE
    assert "read what passes" in finding.text


def test_doctor_asks_a_broker_with_the_keys_it_was_given(folder: KeyFolder, run: Run) -> None:
    with RunningApp(keys=folder, options=SocketOptions(handshake_ms=500)) as running:
        address = running.endpoints.clients
        let_in = run("doctor", "--model", str(TINY), "--broker", address, "--keys", str(folder.path)).out.decode()
        kept_out = run("doctor", "--model", str(TINY), "--broker", address).out.decode()
    assert f"answers at {address}" in let_in
    assert f"ok       keys in {folder.path}" in let_in
    assert "PROBLEM  the broker at" in kept_out
    assert "does not let this client in" in kept_out
