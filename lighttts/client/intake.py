"""The frames of one request: their order, kind and place, and how many more may come. Pure: no sockets, no clock."""

from __future__ import annotations

import numpy as np

from lighttts.client.events import Chunk
from lighttts.transport.wire import Audio, Mel, SpeechRequest, Tokens

Frame = Audio | Mel | Tokens
FRAMES = (Audio, Mel, Tokens)

GRANT_AFTER = 5.0
"""Seconds after which what the caller has taken is granted, however little: a broker ends what nobody seems to take."""

_FRAME_OF = {"audio": Audio, "mel": Mel, "tokens": Tokens}
_DTYPES = {
    "f32": (np.dtype(np.float32),),
    "s16": (np.dtype(np.int16),),
    "mel": (np.dtype(np.float16), np.dtype(np.float32)),
    "tokens": (np.dtype(np.int32),),
}


class Intake:
    """What has come of a request: `received` frames with `rows` samples, mel frames or tokens in all."""

    def __init__(self, asked: SpeechRequest, now: float) -> None:
        self.received = 0
        self.rows = 0
        self._frame_type = _FRAME_OF[asked.output]
        self._dtypes = _DTYPES[asked.sample_type if asked.output == "audio" else asked.output]
        self._window = 0
        self._credit = 0
        self._consumed = 0
        self._owed = 0
        self._granted = now

    @property
    def waiting(self) -> int:
        """Chunks that the caller has not taken yet."""
        return self.received - self._consumed

    def open(self, window: int) -> int:
        """A broker will send the frames from `received` on, at most `window` ahead of the caller: the first credit."""
        self._window, self._owed = window, 0
        self._credit = max(0, window - self.waiting)
        return self._credit

    def consumed(self) -> None:
        """The caller has taken a chunk."""
        self._consumed += 1
        self._owed += 1

    def grant(self, now: float) -> int:
        """Credit for as many frames as were taken, half a window at a time or now and then; 0 if it is not time."""
        if self._owed * 2 < self._window and now - self._granted < GRANT_AFTER:
            return 0
        granted, self._owed = self._owed, 0
        self._credit += granted
        self._granted = now
        return granted

    def problem(self, frame: Frame) -> str:
        """What is wrong with the next frame; empty if nothing is."""
        if not isinstance(frame, self._frame_type):
            return f"{type(frame).__name__} frames instead of {self._frame_type.__name__}"
        if frame.seq != self.received:
            return f"frame {frame.seq} where {self.received} was due: frames were lost or repeated"
        if self._credit <= 0:
            return f"frame {frame.seq} without credit for it"
        first = {Audio: "first_sample", Mel: "first_frame"}.get(type(frame))
        if first and getattr(frame, first) != self.rows:
            return f"frame {frame.seq} begins at {getattr(frame, first)} where {self.rows} was due"
        if _array(frame).dtype not in self._dtypes:
            return f"frame {frame.seq} has dtype {_array(frame).dtype}, which was not asked for"
        return ""

    def take(self, frame: Frame) -> tuple[Chunk, int]:
        """Counts a frame without `problem`; returns its chunk, and the speech tokens up to its end."""
        chunk = _array(frame)
        self.received += 1
        self._credit -= 1
        self.rows += len(chunk)
        if isinstance(frame, Tokens):
            return chunk, self.rows
        return (chunk.astype(np.float32) if chunk.dtype == np.float16 else chunk), frame.tokens


def _array(frame: Frame) -> Chunk:
    if isinstance(frame, Audio):
        return frame.samples
    return frame.mel if isinstance(frame, Mel) else frame.tokens
