"""A certificate with its key, as files have them. Needs no package, for the command line looks at them too."""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from lighttts.errors import ConfigError

FILE_MAX_BYTES = 1 << 20
_OTHERS = 0o077


@dataclass(frozen=True)
class Identity:
    """`chain`: a certificate, with those between it and an authority, and its `key`, both as PEM; `context`: a server's
    side of TLS with them."""

    chain: bytes
    key: bytes = field(repr=False)
    context: ssl.SSLContext


def read_identity(certificate: Path, key: Path) -> Identity:
    """What two PEM files hold. Raises `ConfigError`, which shows nothing of the key."""
    chain = _read(certificate, "certificate")
    secret = _read(key, "key of the certificate", private=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With a password, so that nobody is asked for one.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"the key {key} is not that of the certificate {certificate}") from error
        raise ConfigError(
            f"{certificate} and {key} are no certificate and its key: both must be PEM, the key without a password"
        ) from error
    except OSError as error:
        raise ConfigError(f"{certificate} or {key} is gone: {error.strerror}") from error
    return Identity(chain, secret, context)


def _read(path: Path, what: str, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}") from error
    if private and mode & _OTHERS:
        raise ConfigError(f"the {what} {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(f"{path} is larger than {FILE_MAX_BYTES} bytes: is it the right file?")
    return content
