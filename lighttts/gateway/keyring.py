"""The API keys of a running gateway."""

from __future__ import annotations

import hmac
from pathlib import Path

from lighttts.errors import ConfigError
from lighttts.gateway.keys import ApiKey, digest_of, read_keys
from lighttts.gateway.stamps import stamp_of
from lighttts.logs import get_logger


class KeyRing:
    """The keys of a file, read again when it changes. Raises `ConfigError` when it cannot be used at the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = stamp_of(path)
        self._keys = read_keys(path)

    def find(self, secret: str) -> ApiKey | None:
        """Whose key `secret` is. Takes the same time for all that are none."""
        self._refresh()
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refresh(self) -> None:
        stamp = stamp_of(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            # A slip of whoever edits the file must not shut everybody out.
            get_logger().error("API keys stay as they were", reason=error.text)
