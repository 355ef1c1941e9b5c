"""The file a command writes: whole under its name at the end, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from lighttts.errors import InvalidInput


class OutputFile:
    """A binary file that appears under `path` on `commit`. A context manager: left without that, nothing remains.

    Written to a file without a name where the file system has those, so that not even kill -9 leaves one behind.
    What is not a regular file (a pipe, /dev/null) is written directly. Raises `InvalidInput` when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.realpath(path))
        self._temporary = self._path.with_name(f".{self._path.name[:200]}.{secrets.token_hex(4)}.part")
        self._named = False
        try:
            self.file: BinaryIO = self._open()
        except OSError as error:
            raise InvalidInput(f"cannot write {path}: {error.strerror}; choose another output file") from error

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            # What could not be written was told when it was flushed; closing would try once more.
            self.file.close()
        if self._named:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def commit(self) -> None:
        """Puts the file under its name, in place of one that is there."""
        self.file.flush()
        if self._direct:
            return
        if not self._named:
            # linkat, which follows the link in /proc, is what os.link calls only when it is given a directory.
            directory = os.open("/proc/self/fd", os.O_PATH)
            try:
                os.link(str(self.file.fileno()), self._temporary, src_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(directory)
            self._named = True
        os.replace(self._temporary, self._path)
        self._named = False

    def _open(self) -> BinaryIO:
        self._direct = self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode)
        if self._direct:
            return self._path.open("wb")
        if self._path.exists() and not os.access(self._path, os.W_OK):
            raise PermissionError(0, "it is there and may not be changed")
        try:
            return os.fdopen(os.open(self._path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), "w+b")
        except (IsADirectoryError, OSError) as error:
            if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
                raise
        self._named = True
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return os.fdopen(os.open(self._temporary, flags, 0o666), "w+b")


class StandardOutput:
    """Standard output in the place of a file: written as it comes."""

    def __init__(self) -> None:
        if sys.stdout.isatty():
            raise InvalidInput("standard output is a terminal: pipe it into a player, or use -o FILE")
        self.file: BinaryIO = sys.stdout.buffer

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing of it needs to be put away."""

    def commit(self) -> None:
        """Everything is out already, but for the buffer."""
        self.file.flush()
