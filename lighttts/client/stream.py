"""One request as the client sees it: a state machine that checks order and credit. Pure: no sockets, no clock.

WAITING --begin--> CHOOSING --voice--> ASKED --Accepted--> STREAMING --End--> OVER
            (a voice is given: straight to ASKED)
ASKED, STREAMING --connection lost--> SEVERED --Welcome--> ASKED (not accepted yet), STREAMING
any but OVER --fail, cancel--> CANCELLED (the broker knows the request) or OVER
CANCELLED --End, Error--> OVER
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lighttts.client.events import Arrived, Chunk, Deliver, Event, Failed, Finished, Instruction, Send, Started
from lighttts.errors import DeadlineExceeded, LightTTSError, ProtocolError, Unavailable, from_code
from lighttts.transport.wire import (
    Accepted,
    Audio,
    Cancel,
    Credit,
    End,
    EndAck,
    Error,
    Mel,
    Message,
    Resume,
    Synth,
    Tokens,
)

Frame = Audio | Mel | Tokens
_FRAME_OF = {"audio": Audio, "mel": Mel, "tokens": Tokens}
_DTYPES = {
    "f32": (np.dtype(np.float32),),
    "s16": (np.dtype(np.int16),),
    "mel": (np.dtype(np.float16), np.dtype(np.float32)),
    "tokens": (np.dtype(np.int32),),
}

GRANT_AFTER = 5.0
"""Seconds after which what the caller has taken is granted, however little: a broker ends what nobody seems to take."""
FORGET_AFTER = 30.0
"""Seconds that a cancelled request waits for the broker's last word."""


class Phase(enum.Enum):
    """Where a request is; see the module's picture."""

    WAITING = enum.auto()
    CHOOSING = enum.auto()
    ASKED = enum.auto()
    STREAMING = enum.auto()
    SEVERED = enum.auto()
    CANCELLED = enum.auto()
    OVER = enum.auto()


KNOWN_TO_BROKER = (Phase.ASKED, Phase.STREAMING)


@dataclass(frozen=True)
class Timeouts:
    """Seconds: `connect` until a broker answers, `chunk` without anything new of a request."""

    connect: float
    chunk: float


class Stream:
    """A request from `Synth` to `End`. `emit` takes the instructions it causes; `due` is when to call `tick` next."""

    def __init__(self, synth: Synth, timeouts: Timeouts, emit: Callable[[Instruction], None], now: float) -> None:
        self.id = synth.request_id
        self.phase = Phase.WAITING
        self.connect_due = now + timeouts.connect
        self._synth: Synth | None = synth
        self._frame_type = _FRAME_OF[synth.output]
        self._dtypes = _DTYPES[synth.sample_type if synth.output == "audio" else synth.output]
        self._deadline = now + synth.deadline_ms / 1000 if synth.deadline_ms else math.inf
        self._timeouts = timeouts
        self._emit = emit
        self._moved = now
        self._credit = 0
        self._window = 0
        self._received = 0
        self._consumed = 0
        self._owed = 0
        self._granted = now
        self._position = 0
        self._accepted_once = False
        self._severed: LightTTSError = Unavailable("there is no connection to the broker")
        self._history: list[str] = []

    # ---- towards the broker ----

    def begin(self, window: int, now: float) -> bool:
        """The broker is ready and allows `window` frames in flight. True if the voice must be chosen first."""
        assert self._synth is not None
        self._window = self._credit = window
        self._moved = now
        if self._synth.voice or self._synth.prompt:
            self._ask(self._synth)
            return False
        self._enter(Phase.CHOOSING)
        return True

    def choose(self, voice: str) -> None:
        """Asks with `voice`, the broker's first."""
        if self.phase is Phase.CHOOSING and self._synth is not None:
            self._ask(replace(self._synth, voice=voice))

    def consumed(self, now: float) -> None:
        """The caller has taken a chunk: what it took is granted again, half a window at a time or now and then."""
        self._consumed += 1
        self._owed += 1
        self._moved = now
        due = self._owed * 2 >= self._window or now - self._granted >= GRANT_AFTER
        if self.phase is Phase.STREAMING and due:
            self._credit += self._owed
            self._emit(Send(Credit(self.id, self._owed)))
            self._owed = 0
            self._granted = now

    def sever(self, why: LightTTSError, now: float) -> None:
        """The connection is lost: the request goes on if there is another one within the connect timeout."""
        self._accepted_once = self.phase is Phase.STREAMING
        self._severed = why
        self.connect_due = now + self._timeouts.connect
        self._enter(Phase.SEVERED)

    def resume(self, window: int, now: float) -> None:
        """There is a connection again."""
        self._window, self._owed = window, 0
        self._credit = max(0, window - (self._received - self._consumed))
        self._moved = now
        self._emit(Send(Resume(self.id, self._accepted_once, self._received, self._position, self._credit)))
        self._enter(Phase.STREAMING if self._accepted_once else Phase.ASKED)

    def fail(self, error: LightTTSError, now: float, *, tell_broker: bool = True) -> None:
        """Ends the request with `error` for the caller, and with `Cancel` for a broker that knows it."""
        if self.phase in (Phase.CANCELLED, Phase.OVER):
            return
        if tell_broker and self.phase in KNOWN_TO_BROKER:
            self._emit(Send(Cancel(self.id)))
            self._enter(Phase.CANCELLED)
        else:
            self._enter(Phase.OVER)
        self._moved = now
        self._tell(Failed(error))

    def forget(self) -> None:
        """The connection is gone, and with it the broker's last word."""
        self._enter(Phase.OVER)

    # ---- from the broker ----

    def received(self, message: Message, now: float) -> None:
        """Takes a message of this request; one that does not belong here fails the request."""
        handler = _HANDLERS.get((self.phase, type(message)))
        self._moved = now
        if handler is None:
            history = " -> ".join([*self._history, self.phase.name])
            self._violated(f"{type(message).__name__} at the wrong time ({history})", now)
        else:
            handler(self, message, now)

    def _accepted(self, message: Accepted, now: float) -> None:
        self._enter(Phase.STREAMING)
        self._tell(Started(message.sample_rate))

    def _frame(self, message: Frame, now: float) -> None:
        problem = self._problem(message)
        if problem:
            self._violated(problem, now)
            return
        chunk, tokens = self._content(message)
        self._received += 1
        self._credit -= 1
        self._position += len(chunk)
        self._tell(Arrived(chunk, tokens))

    def _problem(self, message: Frame) -> str:
        if not isinstance(message, self._frame_type):
            return f"{type(message).__name__} frames instead of {self._frame_type.__name__}"
        if message.seq != self._received:
            return f"frame {message.seq} where {self._received} was due: frames were lost or repeated"
        if self._credit <= 0:
            return f"frame {message.seq} without credit for it"
        first = {Audio: "first_sample", Mel: "first_frame"}.get(type(message))
        if first and getattr(message, first) != self._position:
            return f"frame {message.seq} begins at {getattr(message, first)} where {self._position} was due"
        if _array(message).dtype not in self._dtypes:
            return f"frame {message.seq} has dtype {_array(message).dtype}, which was not asked for"
        return ""

    def _content(self, message: Frame) -> tuple[Chunk, int]:
        chunk = _array(message)
        if isinstance(message, Tokens):
            return chunk, self._position + len(chunk)
        return (chunk.astype(np.float32) if chunk.dtype == np.float16 else chunk), message.tokens

    def _end(self, message: End, now: float) -> None:
        if message.frames != self._received:
            self._violated(f"End after {message.frames} frames where {self._received} have arrived", now)
            return
        self._acknowledge(message, now)
        self._tell(Finished(message.tokens))

    def _error(self, message: Error, now: float) -> None:
        self._acknowledge(message, now)
        self._tell(Failed(error_of(message)))

    def _acknowledge(self, message: Message, now: float) -> None:
        self._emit(Send(EndAck(self.id)))
        self._enter(Phase.OVER)

    def _ignore(self, message: Message, now: float) -> None:
        """Sent before the broker saw the `Cancel`."""

    # ---- time ----

    @property
    def due(self) -> float:
        """When `tick` has something to do, if nothing happens before."""
        if self.phase is Phase.CANCELLED:
            return self._moved + FORGET_AFTER
        if self.phase in (Phase.WAITING, Phase.SEVERED):
            return min(self.connect_due, self._deadline)
        return min(self._deadline, self._chunk_due)

    @property
    def _chunk_due(self) -> float:
        """Not while the caller has chunks to take: then it is the caller who lets time pass."""
        return self._moved + self._timeouts.chunk if self._consumed == self._received else math.inf

    def tick(self, now: float, no_broker: LightTTSError) -> None:
        """Fails the request when its time is up; `no_broker` is the error while it waits for a broker."""
        if now < self.due or self.phase is Phase.OVER:
            return
        if self.phase is Phase.CANCELLED:
            self._enter(Phase.OVER)
        elif now >= self._deadline:
            self.fail(DeadlineExceeded("the deadline passed before the request was complete: allow it more time"), now)
        elif self.phase is Phase.WAITING:
            self.fail(no_broker, now)
        elif self.phase is Phase.SEVERED:
            self.fail(self._severed, now)
        else:
            text = (
                f"nothing arrived for {self._timeouts.chunk:g} s: see `lighttts-cli status`, or allow a longer timeout"
            )
            self.fail(DeadlineExceeded(text), now)

    # ---- helpers ----

    def _ask(self, synth: Synth) -> None:
        self._enter(Phase.ASKED)
        self._emit(Send(replace(synth, credit=self._window)))
        self._synth = None

    def _violated(self, problem: str, now: float) -> None:
        self.fail(ProtocolError(f"the broker broke the protocol: {problem}"), now)

    def _tell(self, event: Event) -> None:
        self._emit(Deliver(self.id, event))

    def _enter(self, phase: Phase) -> None:
        self._history.append(self.phase.name)
        self.phase = phase


def _array(frame: Frame) -> Chunk:
    if isinstance(frame, Audio):
        return frame.samples
    return frame.mel if isinstance(frame, Mel) else frame.tokens


def error_of(message: Error) -> LightTTSError:
    """The typed error that an `Error` message carries."""
    return from_code(
        message.code,
        message.text,
        field=message.field,
        retryable=message.retryable,
        retry_after=message.retry_after_ms / 1000 if message.retry_after_ms else None,
    )


_FRAMES = (Audio, Mel, Tokens)
_HANDLERS: dict[tuple[Phase, type[Message]], Callable[..., None]] = {
    (Phase.ASKED, Accepted): Stream._accepted,
    (Phase.ASKED, Error): Stream._error,
    **{(Phase.STREAMING, frame): Stream._frame for frame in _FRAMES},
    (Phase.STREAMING, End): Stream._end,
    (Phase.STREAMING, Error): Stream._error,
    **{(Phase.CANCELLED, early): Stream._ignore for early in (Accepted, *_FRAMES)},
    (Phase.CANCELLED, End): Stream._acknowledge,
    (Phase.CANCELLED, Error): Stream._acknowledge,
}
