"""API keys of the gateway: a file with one line a key, which holds its hash and what its owner may ask for.

    NAME sha256:HASH requests=16 per_minute=600

Keys are 256 random bits, so that a plain hash is enough: there is nothing to guess. Needs no web framework, for the
command line reads and writes the file too.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lighttts.errors import ConfigError, InvalidInput
from lighttts.transport.endpoints import is_loopback

FILE_MAX_BYTES = 1 << 20
KEYS_MAX = 1000
"""Most keys of a file: each request's key is compared with all of them."""
PREFIX = "lt-"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LINE = re.compile(rf"({_NAME}) sha256:([0-9a-f]{{64}}) requests=([1-9]\d{{0,5}}) per_minute=([1-9]\d{{0,5}})")


@dataclass(frozen=True)
class ApiKey:
    """Who holds a key, its SHA-256, and how many requests it may have at once and begin in a minute."""

    name: str
    digest: bytes
    requests: int
    per_minute: int

    def line(self) -> str:
        """The key as the file has it."""
        return f"{self.name} sha256:{self.digest.hex()} requests={self.requests} per_minute={self.per_minute}"


def new_key(name: str, requests: int, per_minute: int) -> tuple[ApiKey, str]:
    """A key that nobody had before, and its secret, which is kept nowhere. Raises `InvalidInput`."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(name, digest_of(secret), requests, per_minute)
    if not _LINE.fullmatch(key.line()):
        raise InvalidInput(
            "a key has a name of up to 64 letters, digits, dots, dashes and underscores, and may have 1 to 999999 "
            "requests at once and a minute"
        )
    return key, secret


def digest_of(secret: str) -> bytes:
    """What the file keeps of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises `ConfigError`, which names the line but never shows it."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the API keys {path} cannot be read: {error.strerror}; make one with `lighttts-cli api-keys add NAME`"
        ) from error
    lines = content.decode("latin-1").split("\n")
    if len(content) > FILE_MAX_BYTES or len(lines) > KEYS_MAX + 1:
        raise ConfigError(f"{path} holds more than {KEYS_MAX} API keys: is it the right file?")
    keys = [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line]
    if len({key.name for key in keys}) < len(keys):
        raise ConfigError(f"two API keys of {path} have one name: remove one of them")
    return keys


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Writes a file of keys whole or not at all. Everybody may read it: hashes of random keys give nothing away."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                os.fchmod(descriptor, 0o644)
                file.writelines(f"{key.line()}\n" for key in keys)
                file.flush()
                os.fsync(descriptor)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def check_access(host: str, keys: Path | None, *, plain: bool) -> None:
    """Without keys only this machine may reach the gateway, unless it is said (`plain`) that it is meant so.

    Raises `ConfigError`.
    """
    if keys is None and not is_loopback(f"{host}:0") and not plain:
        raise ConfigError(
            f"gateway.host is {host}, where anybody in the network could use it: make an API key with "
            "`lighttts-cli api-keys add NAME` and set gateway.keys, or say security.allow_plain"
        )


def _parsed(path: Path, number: int, line: str) -> ApiKey:
    match = _LINE.fullmatch(line)
    if not match:
        raise ConfigError(f"{path}, line {number}, is no API key: make it anew with `lighttts-cli api-keys add NAME`")
    return ApiKey(match[1], bytes.fromhex(match[2]), int(match[3]), int(match[4]))
