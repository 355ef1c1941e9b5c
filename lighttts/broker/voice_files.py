"""Registered voices in a directory, one file each: for brokers whose state is in memory, one after another or several.

    "lighttts-kept 1\\n" | length of the record (4 bytes, big-endian) | the record | the recording

Files are named by a hash, appear whole under their name, and are readable by their owner alone. One process at a time
makes changes, under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lighttts.broker.voice_records import VoiceRecord, digest_of, unpacked, use_of
from lighttts.broker.voice_store import Change, Shelves, VoiceStore
from lighttts.errors import Unavailable
from lighttts.logs import get_logger
from lighttts.transport.wire import MAX_AUDIO_FILE

SUFFIX = ".voice"
RECORD_BYTES = 64 << 10
_MAGIC = b"lighttts-kept 1\n"
_HEAD = len(_MAGIC) + 4
_Stamp = tuple[int, int, int]
_RACY_NS = 100_000_000
"""What changed so short a time ago may change again without a new time stamp."""


def default_directory() -> Path:
    """Where voices are kept if nothing is said: in the state directory of the service, or among the user's data."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.partition(":")[0]) / "voices"
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(data) / "lighttts" / "voices"


class FileStore(VoiceStore):
    """The voices in `folder`, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[_Stamp, VoiceRecord | None]] = {}
        self._looked: _Stamp | None = None
        self._voices: list[VoiceRecord] = []
        self._log = get_logger()

    def shelves(self, owner: str) -> Shelves:
        with self._asking():
            return self._shelves(owner)

    def recording(self, voice: VoiceRecord) -> bytes:
        with self._asking(), contextlib.suppress(FileNotFoundError), self._file(voice).open("rb") as file:
            length = _record_length(file.read(_HEAD))
            file.seek(_HEAD + length)
            content = file.read(MAX_AUDIO_FILE + 1)
            return content if digest_of(content) == voice.digest else b""
        return b""

    def change(self, owner: str, decide: Callable[[Shelves], Change]) -> Change:
        with self._asking(), self._locked():
            change = decide(self._shelves(owner))
            recording = change.recording
            if change.put and change.drop and recording is None:
                recording = self.recording(change.drop)
            if change.put:
                self._write(change.put, recording or b"")
            if change.drop and (change.put is None or change.put.id != change.drop.id):
                self._file(change.drop).unlink(missing_ok=True)
            self._sync()
            return change

    def close(self) -> None:
        """Nothing is held open."""

    def _file(self, voice: VoiceRecord) -> Path:
        return self._folder / f"{voice.id}{SUFFIX}"

    def _shelves(self, owner: str) -> Shelves:
        voices = self._look()
        own = {voice.name: voice for voice in voices if voice.owner == owner}
        shared = {voice.name: voice for voice in voices if voice.shared}
        return Shelves(own, shared, use_of({voice.id: voice for voice in voices if voice.owner != owner}))

    def _look(self) -> list[VoiceRecord]:
        """All voices, the oldest first. The folder is looked through when it has changed, and in it the new files."""
        stamp = _stamp(self._folder)
        if stamp is None or stamp != self._looked:
            self._look_through()
            self._looked = stamp
        return self._voices

    def _look_through(self) -> None:
        seen: dict[str, tuple[_Stamp, VoiceRecord | None]] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
                    known = self._known.get(entry.name)
                    seen[entry.name] = known if known and known[0] == stamp else (stamp, self._read(Path(entry.path)))
        self._known = seen
        self._voices = sorted((voice for _, voice in seen.values() if voice), key=lambda voice: voice.created)

    def _read(self, path: Path) -> VoiceRecord | None:
        """The record in a file, None if it is none: told once."""
        try:
            with path.open("rb") as file:
                voice = unpacked(file.read(_record_length(file.read(_HEAD))))
            if path.name != f"{voice.id}{SUFFIX}":
                raise ValueError("it has another's name")
        except ValueError as error:
            self._log.error("a voice's file is damaged", file=path.name, problem=str(error))
            return None
        return voice

    def _write(self, voice: VoiceRecord, recording: bytes) -> None:
        record = voice.packed()
        draft = self._folder / f".{secrets.token_hex(8)}.part"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + len(record).to_bytes(4, "big") + record + recording)
                file.flush()
                os.fsync(descriptor)
            draft.replace(self._file(voice))
        finally:
            draft.unlink(missing_ok=True)

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for draft in self._folder.glob(".*.part"):
                # Whoever wrote it has died over it: nobody else writes now.
                draft.unlink()
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"the voices in {self._folder} cannot be read or written: {error.strerror}"
            raise Unavailable(f"{where}; set broker.voices_directory to a folder of the broker's own") from error


def _record_length(head: bytes) -> int:
    length = int.from_bytes(head[len(_MAGIC) :], "big")
    if len(head) != _HEAD or not head.startswith(_MAGIC) or length > RECORD_BYTES:
        raise ValueError("it does not begin as a voice's file does")
    return length


def _stamp(folder: Path) -> _Stamp | None:
    """What differs when a file has come or gone; None if that cannot be told, for it changed just now."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    if time.time_ns() - found.st_mtime_ns < _RACY_NS:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
