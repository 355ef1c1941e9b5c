"""One request as the client sees it: a state machine that checks order and credit. Pure: no sockets, no clock.

WAITING --begin--> CHOOSING --voice--> ASKED --Accepted--> STREAMING --End--> OVER
            (a voice is given: straight to ASKED)
CHOOSING --connection lost--> WAITING
ASKED, STREAMING --connection lost--> SEVERED --Welcome--> ASKED (not accepted yet), STREAMING
    (text in pieces: straight to OVER, for nobody could say what of it had come)
ASKED --unknown_request--> ASKED (the broker may never have had the request: it is sent again)
any but OVER --fail, cancel--> CANCELLED (the broker knows the request) or OVER
CANCELLED --End, Error--> OVER
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lighttts.client.events import Arrived, Deliver, Event, Failed, Finished, Instruction, Send, Sent, Started
from lighttts.client.failures import error_of
from lighttts.client.intake import FRAMES, Frame, Intake
from lighttts.client.script import Mark, Script
from lighttts.errors import (
    AccessDenied,
    DeadlineExceeded,
    LightTTSError,
    ProtocolError,
    Unavailable,
    UnknownRequest,
)
from lighttts.transport.wire import (
    OWNERS_SINCE,
    Accepted,
    Cancel,
    Credit,
    End,
    EndAck,
    Error,
    Message,
    Resume,
    SpeechRequest,
    Synth,
    Written,
    since,
)

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
    """A request until its `End`. `emit` takes the instructions it causes; `due` is when to call `tick` next."""

    def __init__(
        self, asked: SpeechRequest, timeouts: Timeouts, emit: Callable[[Instruction], None], now: float
    ) -> None:
        self.id = asked.request_id
        self.phase = Phase.WAITING
        self._asked: SpeechRequest | None = asked  # until it is accepted: a prompt is large
        self._intake = Intake(asked, now)
        self._script = Script() if isinstance(asked, Synth) and asked.pieces else None
        self._deadline = now + asked.deadline_ms / 1000 if asked.deadline_ms else math.inf
        self._timeouts = timeouts
        self._emit = emit
        self._moved = now
        self._connect_due = now + timeouts.connect
        self._window = self._version = 0
        self._may_send_again = False
        self._severed: LightTTSError = Unavailable("there is no connection to the broker")
        self._history: list[str] = []

    # ---- towards the broker ----

    def begin(self, window: int, version: int, now: float) -> bool:
        """The broker is ready, allows `window` frames in flight and is spoken to in a `version` of the protocol.

        True if the voice must be chosen first.
        """
        assert self._asked is not None
        self._window, self._version = window, version
        self._moved = now
        if self._asked.voice or self._asked.prompt:
            self._ask(now)
            return False
        self._enter(Phase.CHOOSING)
        return True

    def choose(self, voice: str, now: float) -> None:
        """Asks with `voice`, the broker's first."""
        if self.phase is Phase.CHOOSING and self._asked is not None:
            self._asked = replace(self._asked, voice=voice)
            self._ask(now)

    def consumed(self, now: float) -> None:
        """The caller has taken a chunk: more may come for it, once that is worth a message."""
        self._intake.consumed()
        self._moved = now
        granted = self._intake.grant(now) if self.phase is Phase.STREAMING else 0
        if granted:
            self._emit(Send(Credit(self.id, granted)))

    def write(self, item: str | Mark, now: float) -> None:
        """The caller has written more of a text in pieces."""
        if self._script and self.phase is not Phase.OVER:
            self._moved = now
            self._script.add(item)
            self._send_text()

    def _send_text(self) -> None:
        if self._script and self.phase in KNOWN_TO_BROKER:
            messages, size = self._script.take(self.id)
            for message in messages:
                self._emit(Send(message))
            if size:
                self._tell(Sent(size))

    def _written(self, message: Written, now: float) -> None:
        if self._script:
            self._script.limit = message.limit
            self._send_text()

    def sever(self, why: LightTTSError, now: float) -> None:
        """The connection is lost: the request goes on if there is another one within the connect timeout."""
        if self.phase is Phase.CANCELLED:
            self._enter(Phase.OVER)
        elif self._script and self.phase in KNOWN_TO_BROKER:
            self._enter(Phase.OVER)
            self._tell(Failed(why))
        elif self.phase in (Phase.CHOOSING, *KNOWN_TO_BROKER):
            self._severed = why
            self._connect_due = now + self._timeouts.connect
            self._enter(Phase.WAITING if self.phase is Phase.CHOOSING else Phase.SEVERED)

    def resume(self, window: int, version: int, now: float) -> None:
        """There is a connection again."""
        self._window, self._version = window, version
        self._moved = now
        accepted = self._asked is None
        self._may_send_again = True
        credit = self._intake.open(window)
        self._emit(Send(Resume(self.id, accepted, self._intake.received, self._intake.rows, credit)))
        self._enter(Phase.STREAMING if accepted else Phase.ASKED)

    def fail(self, error: LightTTSError, now: float) -> None:
        """Ends the request with `error` for the caller, and with `Cancel` for a broker that knows it."""
        if self.phase in (Phase.CANCELLED, Phase.OVER):
            return
        if self.phase in KNOWN_TO_BROKER:
            self._emit(Send(Cancel(self.id)))
            self._enter(Phase.CANCELLED)
        else:
            self._enter(Phase.OVER)
        self._asked = None
        self._moved = now
        self._tell(Failed(error))

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
        self._asked = None
        self._enter(Phase.STREAMING)
        self._tell(Started(message.sample_rate))

    def _frame(self, message: Frame, now: float) -> None:
        problem = self._intake.problem(message)
        if problem:
            self._violated(problem, now)
        else:
            self._tell(Arrived(*self._intake.take(message)))

    def _end(self, message: End, now: float) -> None:
        received = self._intake.received
        if message.frames != received:
            self._violated(f"End after {message.frames} frames where {received} have arrived", now)
            return
        self._acknowledge(message, now)
        self._tell(Finished(message.tokens))

    def _error(self, message: Error, now: float) -> None:
        self._acknowledge(message, now)
        self._tell(Failed(error_of(message)))

    def _not_accepted(self, message: Error, now: float) -> None:
        """Nothing is known of a request that was sent just before the connection broke: perhaps it never arrived."""
        if self._may_send_again and message.code == UnknownRequest.code:
            self._may_send_again = False
            self._ask(now)
        else:
            self._error(message, now)

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
            return min(self._connect_due, self._deadline)
        return min(self._deadline, self._chunk_due)

    @property
    def _chunk_due(self) -> float:
        """Not while the caller has chunks to take, or text to write: then it is the caller who lets time pass."""
        idle = self._intake.waiting or (self._script and not self._script.complete)
        return math.inf if idle else self._moved + self._timeouts.chunk

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
            self.fail(no_broker if isinstance(no_broker, AccessDenied) else self._severed, now)
        else:
            text = (
                f"nothing arrived for {self._timeouts.chunk:g} s: see `lighttts-cli status`, or allow a longer timeout"
            )
            self.fail(DeadlineExceeded(text), now)

    # ---- helpers ----

    def _ask(self, now: float) -> None:
        assert self._asked is not None
        if self._version < OWNERS_SINCE:
            # A broker that knows no owners has no voices of theirs: it need not hear of one.
            self._asked = replace(self._asked, owner="")
        if since(self._asked) > self._version:
            text = "the broker is of an older version, which does not know all that is asked for: upgrade it"
            self.fail(ProtocolError(text), now)
            return
        self._enter(Phase.ASKED)
        self._emit(Send(replace(self._asked, credit=self._intake.open(self._window))))
        self._send_text()

    def _violated(self, problem: str, now: float) -> None:
        self.fail(ProtocolError(f"the broker broke the protocol: {problem}"), now)

    def _tell(self, event: Event) -> None:
        self._emit(Deliver(self.id, event))

    def _enter(self, phase: Phase) -> None:
        self._history.append(self.phase.name)
        self.phase = phase


_HANDLERS: dict[tuple[Phase, type[Message]], Callable[..., None]] = {
    (Phase.ASKED, Accepted): Stream._accepted,
    (Phase.ASKED, Error): Stream._not_accepted,
    **{(Phase.STREAMING, frame): Stream._frame for frame in FRAMES},
    (Phase.STREAMING, Written): Stream._written,
    (Phase.STREAMING, End): Stream._end,
    (Phase.STREAMING, Error): Stream._error,
    **{(Phase.CANCELLED, early): Stream._ignore for early in (Accepted, Written, *FRAMES)},
    (Phase.CANCELLED, End): Stream._acknowledge,
    (Phase.CANCELLED, Error): Stream._acknowledge,
}
