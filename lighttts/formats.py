"""Writers of speech: wav, raw pcm and npy by themselves, flac, ogg and mp3 by libsndfile.

A writer takes int16 chunks (or, for npy, whatever was asked for) as they arrive and leaves nothing unwritten in
between, so that a player at the other end of a pipe has all there is.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from lighttts.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from lighttts.client.events import Chunk

_UNKNOWN_SIZE = 0xFFFFFFFF
_WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")

_EXTENSIONS = {"wav": "wav", "flac": "flac", "ogg": "ogg", "opus": "ogg", "mp3": "mp3", "pcm": "pcm", "raw": "pcm"}
_LIBSNDFILE = {"flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}
AUDIO_FORMATS = ("wav", "flac", "ogg", "mp3", "pcm")


class Writer(Protocol):
    """Writes one file's content."""

    def write(self, chunk: Chunk) -> None: ...

    def close(self) -> None: ...


def format_of(target: str, chosen: str | None, output: str) -> str:
    """The format for `target` (a path, or - for standard output). Raises `InvalidInput`."""
    extension = Path(target).suffix.removeprefix(".").lower()
    if output != "audio":
        if chosen or extension not in ("npy", ""):
            raise InvalidInput(f"{output} is written as a numpy array: use -o FILE.npy without --format")
        return "npy"
    if chosen:
        return chosen
    if target == "-":
        return "wav"
    if extension not in _EXTENSIONS:
        known = ", ".join(f".{name}" for name in _EXTENSIONS)
        raise InvalidInput(f"{target}: name the file after its format ({known}), or say it with --format")
    return _EXTENSIONS[extension]


def check_format(name: str) -> None:
    """Raises `MissingDependency` when what `name` needs is not installed."""
    if name not in _LIBSNDFILE:
        return
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{name} needs soundfile: pip install 'lighttts[audio]', or write wav") from error
    except OSError as error:
        raise MissingDependency(f"{name} needs libsndfile ({error}): install it, or write wav") from error
    kind, subtype = _LIBSNDFILE[name]
    if not soundfile.check_format(kind, subtype):
        raise MissingDependency(f"this libsndfile ({soundfile.__libsndfile_version__}) cannot write {name}: write wav")


def make_writer(name: str, file: BinaryIO, sample_rate: int) -> Writer:
    """A writer of format `name` to `file`, which may be a pipe."""
    makers: dict[str, Callable[[BinaryIO, int], Writer]] = {"wav": _Wav, "pcm": _Pcm, "npy": _Npy}
    if name in makers:
        return makers[name](file, sample_rate)
    return _Libsndfile(file, sample_rate, *_LIBSNDFILE[name])


class _Pcm:
    """Little-endian 16-bit mono samples, nothing else."""

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file = file

    def write(self, chunk: Chunk) -> None:
        self._file.write(chunk.astype("<i2", copy=False).tobytes())
        self._file.flush()

    def close(self) -> None:
        """Nothing follows the samples."""


class _Wav:
    """A WAV file whose sizes are unknown (0xFFFFFFFF, which players take as "to the end") until it is closed, and
    stay so in a pipe."""

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file = file
        self._rate = sample_rate
        self._bytes = 0
        self._pcm = _Pcm(file, sample_rate)
        file.write(self._header(_UNKNOWN_SIZE))
        file.flush()

    def write(self, chunk: Chunk) -> None:
        self._pcm.write(chunk)
        self._bytes += 2 * len(chunk)

    def close(self) -> None:
        if self._file.seekable() and self._bytes + _WAV_HEADER.size < _UNKNOWN_SIZE:
            self._file.seek(0)
            self._file.write(self._header(self._bytes))

    def _header(self, size: int) -> bytes:
        riff = min(_UNKNOWN_SIZE, size + _WAV_HEADER.size - 8)
        rate = self._rate
        return _WAV_HEADER.pack(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)


class _Npy:
    """One numpy array: its header says how long it is, so it is written at the end."""

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file = file
        self._chunks: list[Chunk] = []

    def write(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)

    def close(self) -> None:
        import numpy as np

        # By way of memory, because numpy wants to seek where it writes.
        content = io.BytesIO()
        array = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)
        np.lib.format.write_array(content, array, allow_pickle=False)
        self._file.write(content.getbuffer())


class _Libsndfile:
    """What libsndfile encodes."""

    def __init__(self, file: BinaryIO, sample_rate: int, kind: str, subtype: str) -> None:
        import soundfile

        self._file = file
        target = file if file.seekable() else _Forward(file)
        self._sound = soundfile.SoundFile(target, "w", sample_rate, 1, subtype=subtype, format=kind)

    def write(self, chunk: Chunk) -> None:
        self._sound.write(chunk)
        self._file.flush()

    def close(self) -> None:
        self._sound.close()


class _Forward:
    """A pipe as libsndfile wants a file: it may seek, but what it then changes has long gone out, so it is dropped.

    That is the length in the header, without which every player plays to the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self._end = 0

    def write(self, data: bytes | memoryview) -> int:
        content = bytes(data)
        if self._position == self._end:
            self._file.write(content)
        self._position += len(content)
        self._end = max(self._end, self._position)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        self._file.flush()
