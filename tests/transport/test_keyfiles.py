"""Key files: each is what it says, nobody else can read a secret, and no key is ever shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.errors import ConfigError
from lighttts.transport.keyfiles import ALLOWED_MAX, KeyFolder, KeyPair, Role, fingerprint, new_pair


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_stored_pair_is_read_back_with_its_public_half(folder: KeyFolder) -> None:
    pair = new_pair()
    folder.store(Role.CLIENT, "alice", pair)
    assert folder.pair(Role.CLIENT) == pair


def test_a_broker_s_public_key_is_stored_beside_its_secret(folder: KeyFolder) -> None:
    pair = new_pair()
    folder.store(Role.BROKER, "local", pair)
    assert folder.broker_key() == pair.public


@pytest.mark.usefixtures("_no_umask")
def test_a_secret_is_its_owner_s_alone_whatever_the_umask(folder: KeyFolder) -> None:
    folder.store(Role.WORKER, "gpu", new_pair())
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.secret_file(Role.WORKER).stat().st_mode) == 0o600
    assert os.listdir(folder.path) == ["worker.secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_secret_that_others_may_read_is_not_used(folder: KeyFolder, mode: int) -> None:
    folder.store(Role.CLIENT, "alice", new_pair())
    folder.secret_file(Role.CLIENT).chmod(mode)
    assert list(folder.exposed()) == [folder.secret_file(Role.CLIENT)]
    with pytest.raises(ConfigError, match=r"can be read by others.*chmod 600"):
        folder.pair(Role.CLIENT)


def test_a_key_is_never_shown(folder: KeyFolder) -> None:
    pair = new_pair()
    secret = pair.secret.decode()
    assert secret not in repr(pair)
    folder.store(Role.CLIENT, "alice", pair)
    folder.secret_file(Role.CLIENT).write_text(f"a slip of the editor\n{secret}\n")
    with pytest.raises(ConfigError) as caught:
        folder.pair(Role.CLIENT)
    assert secret not in str(caught.value)
    assert secret[:8] not in str(caught.value)


def test_an_absent_key_is_named_with_its_remedy(folder: KeyFolder) -> None:
    with pytest.raises(ConfigError, match=r"no secret client key .*client\.secret: see `lighttts-cli keys"):
        folder.pair(Role.CLIENT)
    with pytest.raises(ConfigError, match=r"no public broker key .*broker\.key"):
        folder.broker_key()
    with pytest.raises(ConfigError, match="lighttts-cli keys create"):
        folder.allowed_names(Role.CLIENT)


def test_a_key_cannot_stand_where_another_belongs(folder: KeyFolder) -> None:
    folder.store(Role.CLIENT, "alice", new_pair())
    folder.make_lists()
    secret = folder.secret_file(Role.CLIENT)
    secret.rename(folder.secret_file(Role.WORKER))
    with pytest.raises(ConfigError, match="not a secret worker key"):
        folder.pair(Role.WORKER)
    folder.secret_file(Role.WORKER).rename(folder.allowed_file(Role.CLIENT, "alice"))
    with pytest.raises(ConfigError, match="not a public client key"):
        folder.allowed_key(Role.CLIENT, "alice")


HEAD = b"lighttts-key 1 public client alice\n"
KEY = new_pair().public


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KEY,
        HEAD,
        HEAD + KEY[:39],
        HEAD + KEY + b"x",
        HEAD + b'"' * 40,
        HEAD + b"#" * 40,
        HEAD + KEY + b"\n" + KEY,
        HEAD.replace(b"1", b"2") + KEY,
        b"\xff" * 100,
        HEAD + KEY + b"\n" * 2000,
    ],
    ids=[
        "nothing",
        "no head",
        "no key",
        "a short key",
        "a long key",
        "quotes",
        "no Z85",
        "two keys",
        "another version",
        "no text",
        "much behind it",
    ],
)
def test_what_is_no_key_file_is_refused(folder: KeyFolder, content: bytes) -> None:
    folder.make_lists()
    path = folder.allowed_file(Role.CLIENT, "alice")
    path.write_bytes(HEAD + KEY)
    assert folder.allowed_key(Role.CLIENT, "alice") == KEY
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a public client key"):
        folder.allowed_key(Role.CLIENT, "alice")


def test_what_cannot_be_read_is_a_config_error(folder: KeyFolder) -> None:
    folder.broker_file.mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        folder.broker_key()
    with pytest.raises(ConfigError, match="cannot write"):
        folder.store(Role.BROKER, "local", new_pair(), replace=True)
    (folder.path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"):
        KeyFolder(folder.path / "file" / "keys").store(Role.CLIENT, "alice", new_pair())


def test_allowing_and_forbidding(folder: KeyFolder) -> None:
    folder.make_lists()
    assert folder.allowed_names(Role.CLIENT) == []
    for name in ("bob", "alice"):
        folder.allow(Role.CLIENT, name, KEY)
    (folder.allowed_folder(Role.CLIENT) / "README").touch()
    assert folder.allowed_names(Role.CLIENT) == ["alice", "bob"]
    assert folder.allowed_names(Role.WORKER) == []
    folder.forbid(Role.CLIENT, "alice")
    assert folder.allowed_names(Role.CLIENT) == ["bob"]
    with pytest.raises(ConfigError, match="no client key is called alice; there are: bob"):
        folder.forbid(Role.CLIENT, "alice")


def test_nothing_is_overwritten_unless_asked(folder: KeyFolder) -> None:
    first, second = new_pair(), new_pair()
    folder.store(Role.CLIENT, "alice", first)
    with pytest.raises(ConfigError, match="exists already"):
        folder.store(Role.CLIENT, "alice", second)
    assert folder.pair(Role.CLIENT) == first
    folder.store(Role.CLIENT, "alice", second, replace=True)
    assert folder.pair(Role.CLIENT) == second
    assert os.listdir(folder.path) == ["client.secret"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../etc/passwd", "a b", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(folder: KeyFolder, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a key"):
        folder.allowed_file(Role.CLIENT, name)


def test_a_list_has_a_greatest_length(folder: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.make_lists()
    monkeypatch.setattr("lighttts.transport.keyfiles.ALLOWED_MAX", 1)
    folder.allow(Role.CLIENT, "alice", KEY)
    assert folder.allowed_names(Role.CLIENT) == ["alice"]
    folder.allow(Role.CLIENT, "bob", KEY)
    with pytest.raises(ConfigError, match="more than 1 keys"):
        folder.allowed_names(Role.CLIENT)
    assert ALLOWED_MAX >= 1000


def test_a_fingerprint_finds_a_key(folder: KeyFolder) -> None:
    pair = KeyPair(*(key.encode() for key in ("abcdefgh" * 5, "x" * 40)))
    assert fingerprint(pair.public) == "abcdefgh"
