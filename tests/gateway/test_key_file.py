"""The file of API keys: what is in it, and what is refused without being shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from lighttts.errors import ConfigError
from lighttts.gateway.keyring import KeyRing
from lighttts.gateway.keys import KEYS_MAX, PREFIX, new_key, read_keys, write_keys


def test_a_key_is_found_by_its_secret_alone(tmp_path: Path) -> None:
    path = tmp_path / "api-keys"
    made = [new_key(name, 16, 600) for name in ("alice", "bob")]
    write_keys(path, [key for key, _ in made])
    ring = KeyRing(path)
    for key, secret in made:
        assert ring.find(secret) == key
        assert ring.find(key.digest.hex()) is None
    assert ring.find("") is None
    assert ring.find("\ud800") is None


def test_secrets_are_long_and_never_the_same() -> None:
    secrets = {new_key("alice", 1, 1)[1] for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith(PREFIX) and len(secret) >= 43 for secret in secrets)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("alice hush requests=1 per_minute=1\n", "line 1"),
        ("\n\nalice sha256:HUSH requests=1 per_minute=1\n", "line 3"),
        (f"alice sha256:{'0' * 64} requests=0 per_minute=1\n", "line 1"),
        (f"alice sha256:{'0' * 64} requests=1 per_minute=1\n" * 2, "one name"),
        ("\n" * (KEYS_MAX + 2), f"more than {KEYS_MAX}"),
        ("\xff\n", "line 1"),
    ],
)
def test_a_file_that_is_none_is_refused_without_showing_it(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "api-keys"
    path.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match=says) as caught:
        read_keys(path)
    assert "hush" not in caught.value.text.lower()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent cannot be read"):
        KeyRing(tmp_path / "absent")
