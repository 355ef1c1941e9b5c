"""The list of keys that a socket admits, read again when it changes, and which of them may keep their connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lighttts.errors import ConfigError
from lighttts.transport.keyfiles import KeyFolder, Role

RESCAN_S = 1.0
"""A list is looked through again after this, even if its folder looks unchanged."""
_RACY_NS = 100_000_000
"""What changed so short a time ago may change again without a new time stamp."""
_Stamp = tuple[int, ...]


class _File(NamedTuple):
    """A key file as it was read: its stamp (None: read it again), the last key it held, whether it holds one now."""

    stamp: _Stamp | None
    key: str
    usable: bool


class AllowList:
    """The public keys that are allowed as `role`. For one thread, but for `standing`.

    `report` is told once of each file, and of the folder, that cannot be used.
    """

    def __init__(self, folder: KeyFolder, role: Role, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._role = role
        self._report = report
        self._names: dict[str, str] = {}
        self._files: dict[str, _File] = {}
        self._stamp: _Stamp | None = None
        self._stale_at = 0.0
        self._trouble = ""
        self.standing: frozenset[str] = frozenset()
        """The keys whose connections may stay, a new object when they change: those that are allowed, and those whose
        file, or whose whole list, cannot be read now, which is no removal."""

    def name_of(self, public: bytes) -> str | None:
        """The name under which the key (Z85) is allowed, None if it is not."""
        self.refresh()
        return self._names.get(public.decode("ascii"))

    def refresh(self) -> None:
        """Looks whether the list has changed."""
        stamp = _stamp(self._folder.allowed_folder(self._role))
        if stamp is None or stamp != self._stamp or time.monotonic() >= self._stale_at:
            self._load()
            self._stamp = stamp
            self._stale_at = time.monotonic() + RESCAN_S

    def _load(self) -> None:
        """Reads what has changed. What cannot be read admits nobody, and is told."""
        self._names = {}
        try:
            names = self._folder.allowed_names(self._role)
        except ConfigError as error:
            if self._trouble != error.text:
                self._report(error.text)
            self._trouble = error.text
            return
        self._trouble = ""
        self._files = {name: self._read(name, self._files.get(name)) for name in names}
        self._names = {file.key: name for name, file in self._files.items() if file.usable}
        standing = frozenset(file.key for file in self._files.values() if file.key)
        if standing != self.standing:
            self.standing = standing

    def _read(self, name: str, before: _File | None) -> _File:
        stamp = _stamp(self._folder.allowed_file(self._role, name))
        if before and stamp is not None and stamp == before.stamp:
            return before
        try:
            return _File(stamp, self._folder.allowed_key(self._role, name).decode("ascii"), usable=True)
        except ConfigError as error:
            if before is None or before.usable:
                self._report(error.text)
            return _File(stamp, before.key if before else "", usable=False)


def _stamp(path: Path) -> _Stamp | None:
    """What differs after a change; None if that cannot be told, for it changed just now, or there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time_ns() - found.st_ctime_ns < _RACY_NS:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size
