"""CURVE keys as files: one folder holds what a machine proves itself with, and whom its broker lets in.

    DIR/broker.key                the broker's public key, needed by all who connect to it
    DIR/broker.secret             its secret key, only where a broker runs
    DIR/client.secret             what clients prove themselves with
    DIR/worker.secret             the same for workers
    DIR/allowed/client/NAME.key   whose public keys the broker takes for a client's
    DIR/allowed/worker/NAME.key   or for a worker's

A file has two lines: what it is (``lighttts-key 1 secret client alice``), so that no key can stand where another
belongs, and the key in Z85 (ZeroMQ RFC 32), 40 characters. Secret keys are readable by their owner alone, as with ssh.

ZeroMQ is imported where it is needed: the command line starts without it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lighttts.errors import ConfigError

FILE_MAX_BYTES = 1024
ALLOWED_MAX = 10_000
"""Most keys of one role that a broker reads."""
LOCAL_NAME = "local"
"""Name of the client and worker keys that a key folder is created with."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_Z85 = r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}"
_FILE = re.compile(rf"lighttts-key 1 (public|secret) (broker|client|worker) {_NAME}\n({_Z85})\n?")


class Role(enum.Enum):
    """What a key's holder is to the others."""

    BROKER = "broker"
    CLIENT = "client"
    WORKER = "worker"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, both keys in Z85; the secret one is not shown when this is printed."""

    public: bytes
    secret: bytes = field(repr=False)


class KeyFolder:
    """The keys under `path`. Errors are `ConfigError`s that name the file and what mends it, never a key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def broker_file(self) -> Path:
        """Where the broker's public key is."""
        return self.path / "broker.key"

    def secret_file(self, role: Role) -> Path:
        """Where the secret key of `role` is."""
        return self.path / f"{role.value}.secret"

    def allowed_folder(self, role: Role) -> Path:
        """Where the public keys are that the broker admits as `role`."""
        return self.path / "allowed" / role.value

    def allowed_file(self, role: Role, name: str) -> Path:
        """Where `name`'s public key is. Raises `ConfigError` when no file may have that name."""
        if not re.fullmatch(_NAME, name):
            raise ConfigError(f"{name!r} cannot name a key: use up to 64 letters, digits, dots, dashes and underscores")
        return self.allowed_folder(role) / f"{name}.key"

    def pair(self, role: Role) -> KeyPair:
        """The key pair that this machine has as `role`."""
        import zmq

        secret = _read(self.secret_file(role), "secret", role)
        return KeyPair(zmq.curve_public(secret), secret)

    def broker_key(self) -> bytes:
        """The broker's public key in Z85."""
        return _read(self.broker_file, "public", Role.BROKER)

    def allowed_names(self, role: Role) -> list[str]:
        """The names under which keys are allowed, sorted. Raises `ConfigError` when there is no such list."""
        folder = self.allowed_folder(role)
        try:
            names = sorted(path.stem for path in folder.iterdir() if re.fullmatch(rf"{_NAME}\.key", path.name))
        except OSError as error:
            raise ConfigError(
                f"the list of allowed keys {folder} cannot be read: {error.strerror}; "
                f"make a key folder with `lighttts-cli keys create --keys {self.path}`"
            ) from error
        if len(names) > ALLOWED_MAX:
            raise ConfigError(f"{folder} holds more than {ALLOWED_MAX} keys: remove those that nobody uses")
        return names

    def allowed_key(self, role: Role, name: str) -> bytes:
        """The public key in Z85 that is allowed as `role` under `name`."""
        return _read(self.allowed_file(role, name), "public", role)

    def allow(self, role: Role, name: str, public: bytes, *, replace: bool = False) -> None:
        """Admits `public` from now on. Raises `ConfigError` when the name is taken, unless `replace`."""
        _write(self.allowed_file(role, name), f"public {role.value} {name}", public, 0o644, replace=replace)

    def forbid(self, role: Role, name: str) -> None:
        """Admits `name`'s key no longer. Raises `ConfigError` when there is none."""
        try:
            self.allowed_file(role, name).unlink()
        except FileNotFoundError as error:
            known = ", ".join(self.allowed_names(role)) or "none"
            raise ConfigError(f"no {role.value} key is called {name}; there are: {known}") from error

    def store(self, role: Role, name: str, pair: KeyPair, *, replace: bool = False) -> None:
        """Writes the secret key that this machine has as `role`; for a broker its public key too."""
        _make_private(self.path)
        _write(self.secret_file(role), f"secret {role.value} {name}", pair.secret, 0o600, replace=replace)
        if role is Role.BROKER:
            self.store_broker_key(pair.public, replace=replace)

    def store_broker_key(self, public: bytes, *, replace: bool = False) -> None:
        """Writes the public key of the broker that this folder is for."""
        _make_private(self.path)
        _write(self.broker_file, f"public {Role.BROKER.value} {LOCAL_NAME}", public, 0o644, replace=replace)

    def make_lists(self) -> None:
        """Makes the lists of allowed keys, empty where there are none."""
        for role in (Role.CLIENT, Role.WORKER):
            self.allowed_folder(role).mkdir(mode=0o755, parents=True, exist_ok=True)

    def exposed(self) -> Iterator[Path]:
        """The secret keys that others than their owner may read or write."""
        for role in Role:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(self.secret_file(role).stat().st_mode) & 0o077:
                    yield self.secret_file(role)


def new_pair() -> KeyPair:
    """A key pair that nobody had before."""
    import zmq

    return KeyPair(*zmq.curve_keypair())


def fingerprint(public: bytes) -> str:
    """The start of a public key in Z85, enough to find it in a list."""
    return public[:8].decode("ascii")


def _read(path: Path, kind: str, role: Role) -> bytes:
    """The key of a file, which must hold this `kind` (public, secret) of key for `role`."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {kind} {role.value} key {path}: see `lighttts-cli keys --help`") from error
    except OSError as error:
        raise ConfigError(f"the {kind} {role.value} key {path} cannot be read: {error.strerror}") from error
    if kind == "secret" and mode & 0o077:
        raise ConfigError(f"the secret key {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    match = _FILE.fullmatch(content.decode("latin-1"))
    if not match or match[1] != kind or match[2] != role.value or not _is_key(match[3]):
        raise ConfigError(f"{path} is not a {kind} {role.value} key: make it anew, see `lighttts-cli keys --help`")
    return match[3].encode("ascii")


def _is_key(text: str) -> bool:
    """Whether 40 characters of Z85's alphabet stand for 32 bytes: some groups of five are above 2**32."""
    from zmq.utils import z85

    try:
        z85.decode(text)
    except struct.error:
        return False
    return True


def _write(path: Path, title: str, key: bytes, mode: int, *, replace: bool) -> None:
    """Writes a key file whole or not at all; it never has other permissions than `mode`."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(b"lighttts-key 1 %b\n%b\n" % (title.encode("ascii"), key))
                file.flush()
                os.fsync(descriptor)
            if replace:
                draft.replace(path)
            else:
                path.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already: remove it first, or choose another name or folder") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from error
