"""Audio formats for HTTP: each chunk of samples becomes the bytes that can be sent for it, at once."""

from __future__ import annotations

import asyncio
import io
from fractions import Fraction
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from lighttts.formats import Writer, make_writer

if TYPE_CHECKING:
    from lighttts.client.events import Chunk

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_PAGE_US = 100_000
"""Microseconds of speech in a page of Ogg: ffmpeg's default of a second, as libsndfile's, would delay the first."""
_CONTAINERS = {
    "aac": ("adts", "aac", {}),
    "opus": ("ogg", "libopus", {"page_duration": str(_PAGE_US)}),
}
_QUICK = {"pcm", "wav"}
"""Formats that need no compressing, which takes milliseconds: less than it takes to have a thread do it."""
_BIT_RATE = 64_000
"""Bits a second, where the codec's default is meant for music or for two channels."""


class Encoder:
    """Encodes one request's speech: int16 mono chunks at `sample_rate` in, bytes of format `name` out."""

    def __init__(self, name: str, sample_rate: int) -> None:
        self._sink = _Sink()
        self._quick = name in _QUICK
        # A sink is all of a file that writers to a pipe need.
        file = cast(BinaryIO, self._sink)
        self._writer: Writer = (
            _AvWriter(file, sample_rate, name) if name in _CONTAINERS else make_writer(name, file, sample_rate)
        )

    def encode(self, chunk: Chunk) -> bytes:
        """What can be sent now, perhaps nothing yet."""
        self._writer.write(chunk)
        return self._sink.take()

    async def encode_beside(self, chunk: Chunk) -> bytes:
        """The same for an event loop, which others wait for."""
        return self.encode(chunk) if self._quick else await asyncio.to_thread(self.encode, chunk)

    def finish(self) -> bytes:
        """What remains after the last chunk."""
        self._writer.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A pipe that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(cast(bytes, data))
        self._content += content
        return len(content)

    def take(self) -> bytes:
        content = bytes(self._content)
        self._content.clear()
        return content


class _AvWriter:
    """What ffmpeg's libraries encode."""

    def __init__(self, file: BinaryIO, sample_rate: int, name: str) -> None:
        container, codec, options = _CONTAINERS[name]
        # Without its own buffer in between, a packet is written as soon as it is made.
        self._container = av.open(
            cast("IO[bytes]", file), "w", format=container, options={"flush_packets": "1", **options}
        )
        stream = self._container.add_stream(codec, rate=sample_rate, layout="mono")
        self._stream = cast(AudioStream, stream)
        self._stream.bit_rate = _BIT_RATE
        self._rate = sample_rate
        self._samples = 0

    def write(self, chunk: Chunk) -> None:
        frame = AudioFrame.from_ndarray(np.asarray(chunk, np.int16).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = self._rate
        frame.pts = self._samples
        frame.time_base = Fraction(1, self._rate)
        self._samples += len(chunk)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
