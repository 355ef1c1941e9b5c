"""`lighttts-cli api-keys`: a key is shown once and kept as a hash."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lighttts.gateway.keys import digest_of, read_keys
from tests.cli.conftest import Run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api-keys"


def test_a_new_key_is_printed_and_only_its_hash_is_kept(run: Run, path: Path) -> None:
    done = run("api-keys", "add", "alice", "--requests", "3", "--per-minute", "70", "--file", str(path))
    assert (done.code, done.err) == (0, "")
    secret = done.out.decode().strip()
    assert secret not in path.read_text()
    (key,) = read_keys(path)
    assert (key.name, key.digest, key.requests, key.per_minute) == ("alice", digest_of(secret), 3, 70)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["api-keys"]


def test_keys_are_listed_and_removed(run: Run, path: Path) -> None:
    for name in ("alice", "bob"):
        assert run("api-keys", "add", name, "--file", str(path)).code == 0
    listed = run("api-keys", "list", "--set", f"gateway.keys={path}").out.decode()
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["alice", "bob"]
    assert run("api-keys", "remove", "alice", "--file", str(path)).code == 0
    assert [key.name for key in read_keys(path)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("add", "alice"), 65, "already"),
        (("add", "no spaces"), 65, "letters"),
        (("add", "carol", "--requests", "0"), 65, "1 to 999999"),
        (("add",), 65, "NAME"),
        (("list", "alice"), 65, "NAME"),
        (("remove", "carol"), 65, "there are: alice"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    run: Run, path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    run("api-keys", "add", "alice", "--file", str(path))
    before = path.read_bytes()
    done = run("api-keys", *arguments, "--file", str(path))
    assert done.code == code
    assert says in done.err
    assert path.read_bytes() == before


def test_without_a_file_it_says_which_to_name(run: Run) -> None:
    done = run("api-keys", "list")
    assert done.code == 65
    assert "gateway.keys" in done.err
