"""The client's core: every request and query over one connection. Pure: messages, calls and the time go in,
instructions (`Send`, `Deliver`) come out of `take`.

A connection is OFFLINE, or GREETING from `Hello` to `Welcome`, then READY. Whoever asks while it is not READY waits, at
most the connect timeout. While anything is expected of the broker, silence is answered by another `Hello`, and silence
after that means the broker is lost: everything that depended on it fails, nothing waits for ever.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lighttts.client.absence import Absence
from lighttts.client.events import Answered, Deliver, Failed, Instruction, Send
from lighttts.client.stream import KNOWN_TO_BROKER, Phase, Stream, Timeouts, error_of
from lighttts.errors import Cancelled, LightTTSError, NoWorker, ProtocolError, Unavailable
from lighttts.transport.schema import Buffer
from lighttts.transport.wire import (
    Error,
    GetStatus,
    Hello,
    ListVoices,
    Message,
    Status,
    Synth,
    Voices,
    Welcome,
    decode,
)

WINDOW = 32
"""Frames of a request in flight to the caller, unless the broker allows fewer."""

PING_AFTER = 5.0
LOST_AFTER = 15.0
"""Seconds of silence, while something is expected, until a `Hello` is sent and until the broker counts as lost."""


class Link(enum.Enum):
    """The connection's state."""

    OFFLINE = enum.auto()
    GREETING = enum.auto()
    READY = enum.auto()


@dataclass
class _Query:
    message: ListVoices | GetStatus
    due: float
    stream: Stream | None = None  # the request that waits for the first voice, if it is not a caller who asks
    sent: bool = False


class Session:
    """All requests of one client at the broker `endpoint`; `hello` introduces it."""

    def __init__(self, endpoint: str, timeouts: Timeouts, hello: Hello) -> None:
        self._endpoint = endpoint
        self.absence = Absence(endpoint)
        self._timeouts = timeouts
        self._hello = hello
        self._link = Link.OFFLINE
        self._window = WINDOW
        self._streams: dict[str, Stream] = {}
        self._queries: dict[int, _Query] = {}
        self._numbers = itertools.count(1)
        self._instructions: list[Instruction] = []
        self._heard = -math.inf
        self._pinged = False
        self._due = math.inf

    def take(self) -> list[Instruction]:
        """The instructions since the last call, in order."""
        taken = [*self._instructions]
        self._instructions.clear()
        return taken

    # ---- callers ----

    def open(self, synth: Synth, now: float) -> None:
        """Begins a request; its events are delivered under its request id."""
        stream = Stream(synth, self._timeouts, self._instructions.append, now)
        self._streams[stream.id] = stream
        if self._link is Link.READY:
            self._begin(stream, now)
        self._schedule(stream.due)

    def query(self, kind: type[ListVoices] | type[GetStatus], key: int, now: float) -> None:
        """Asks for voices or status; the answer is delivered under `key`."""
        self._ask(_Query(kind(key), now + self._timeouts.connect), now)

    def new_key(self) -> int:
        """A key for `query`; may be called from any thread."""
        return next(self._numbers)

    def consumed(self, request_id: str, now: float) -> None:
        """The caller has taken one chunk."""
        stream = self._streams.get(request_id)
        if stream:
            stream.consumed(now)
            self._schedule(stream.due)

    def cancel(self, request_id: str, now: float) -> None:
        """The caller wants no more of the request. Idempotent."""
        stream = self._streams.get(request_id)
        if stream:
            stream.fail(Cancelled("the request was cancelled"), now)
            self._settle(stream)

    def close(self, now: float) -> None:
        """Cancels everything."""
        self.fail_all(Cancelled("the client was closed"), now)

    # ---- network ----

    def connected(self, now: float) -> None:
        """A connection is made: the session introduces itself."""
        self._link = Link.GREETING
        self._heard = now
        self._send(self._hello)

    def disconnected(self, now: float) -> None:
        """The connection is lost, and with it everything the broker was doing for it."""
        self._link = Link.OFFLINE
        self._lose(f"the connection to the broker at {self._endpoint} was lost: try again", now)

    def received(self, frames: Sequence[Buffer], now: float) -> None:
        """Takes a message from the broker."""
        self._heard = now
        if self._pinged:
            self._pinged = False
            self._schedule(self._silence_due)
        try:
            message = decode(frames)
        except ProtocolError as error:
            self.fail_all(ProtocolError(f"the broker at {self._endpoint} sent what is not valid: {error.text}"), now)
            return
        if isinstance(message, Welcome):
            self._welcomed(message, now)
        elif isinstance(message, Voices | Status):
            self._answered(message)
        elif isinstance(message, Error) and not message.request_id:
            self._refused(error_of(message), now)
        else:
            self._for_stream(message, now)

    def _for_stream(self, message: Message, now: float) -> None:
        request_id = getattr(message, "request_id", None)
        if request_id is None:
            text = f"the broker at {self._endpoint} sent {type(message).__name__}, which no client understands"
            self.fail_all(ProtocolError(text), now)
            return
        stream = self._streams.get(request_id)
        if stream:
            stream.received(message, now)
            self._settle(stream)

    def _welcomed(self, message: Welcome, now: float) -> None:
        if self._link is not Link.GREETING:
            return
        self._link = Link.READY
        self._window = min(WINDOW, max(1, message.max_credit))
        for stream in [*self._streams.values()]:
            if stream.phase is Phase.WAITING:
                self._begin(stream, now)
            elif stream.phase is Phase.SEVERED:
                self._expect(now)
                stream.resume(self._window, now)
                self._schedule(stream.due)
        for query in [*self._queries.values()]:
            if not query.sent:
                self._post(query, now)

    def _answered(self, message: Voices | Status) -> None:
        query = self._queries.pop(message.query_id, None)
        if query is None:
            return
        if query.stream is None:
            self._instructions.append(Deliver(message.query_id, Answered(message)))
        elif isinstance(message, Voices) and message.names:
            query.stream.choose(message.names[0])
        else:
            text = "the broker has no preset voice now: give a prompt, or start a lighttts-encode worker"
            query.stream.fail(NoWorker(text), self._heard)
            self._settle(query.stream)

    def _refused(self, error: LightTTSError, now: float) -> None:
        """An error without a request id answers the last message: whatever has had no answer yet."""
        for stream in [*self._streams.values()]:
            if stream.phase in (Phase.WAITING, Phase.CHOOSING, Phase.ASKED):
                stream.fail(error, now)
                self._settle(stream)
        self._fail_queries(error)

    # ---- time ----

    def next_due(self) -> float:
        """When `tick` must be called at the latest; infinity if never."""
        return self._due

    def tick(self, now: float) -> None:
        """Ends what has run out of time."""
        if now < self._due:
            return
        no_broker = self.absence.error(now)
        for stream in [*self._streams.values()]:
            stream.tick(now, no_broker)
            self._settle(stream)
        for number, query in [*self._queries.items()]:
            if now >= query.due and query.stream is None:
                del self._queries[number]
                self._instructions.append(Deliver(number, Failed(no_broker)))
        self._mind_silence(now)
        dues = [*(stream.due for stream in self._streams.values()), *(query.due for query in self._queries.values())]
        self._due = min(dues, default=math.inf)
        self._schedule(self._silence_due)

    @property
    def _expecting(self) -> bool:
        asked = any(stream.phase in KNOWN_TO_BROKER for stream in self._streams.values())
        return asked or any(query.sent for query in self._queries.values())

    @property
    def _silence_due(self) -> float:
        return self._heard + (LOST_AFTER if self._pinged else PING_AFTER) if self._expecting else math.inf

    def _mind_silence(self, now: float) -> None:
        if now < self._silence_due:
            return
        if self._pinged:
            self._lose(f"the broker at {self._endpoint} has not answered for {LOST_AFTER:g} s: is it stuck?", now)
            self.connected(now)
        else:
            self._pinged = True
            self._send(self._hello)

    # ---- helpers ----

    def fail_all(self, error: LightTTSError, now: float) -> None:
        """Fails every request and query; the broker is told to stop what it does for them."""
        for stream in [*self._streams.values()]:
            stream.fail(error, now)
            self._settle(stream)
        self._fail_queries(error)

    def _lose(self, why: str, now: float) -> None:
        error = Unavailable(why)
        for stream in [*self._streams.values()]:
            if stream.phase is Phase.CANCELLED:
                stream.forget()
            elif stream.phase in KNOWN_TO_BROKER:
                stream.sever(error, now)
            elif stream.phase is Phase.CHOOSING:
                stream.fail(error, now, tell_broker=False)
            self._settle(stream)
        self._fail_queries(error, only_sent=True)

    def _fail_queries(self, error: LightTTSError, *, only_sent: bool = False) -> None:
        for number, query in [*self._queries.items()]:
            if query.sent or not only_sent:
                del self._queries[number]
                if query.stream is None:
                    self._instructions.append(Deliver(number, Failed(error)))

    def _begin(self, stream: Stream, now: float) -> None:
        self._expect(now)
        if stream.begin(self._window, now):
            self._ask(_Query(ListVoices(self.new_key()), math.inf, stream), now)
        self._schedule(stream.due)

    def _ask(self, query: _Query, now: float) -> None:
        self._queries[query.message.query_id] = query
        if self._link is Link.READY:
            self._post(query, now)
        self._schedule(query.due)

    def _post(self, query: _Query, now: float) -> None:
        self._expect(now)
        query.sent = True
        self._send(query.message)
        self._schedule(self._silence_due)

    def _expect(self, now: float) -> None:
        """From now on the broker owes an answer; silence before does not count."""
        if not self._expecting:
            self._heard = now
            self._pinged = False
        self._schedule(now + PING_AFTER)

    def _settle(self, stream: Stream) -> None:
        if stream.phase is Phase.OVER:
            self._streams.pop(stream.id, None)
        else:
            self._schedule(stream.due)

    def _schedule(self, due: float) -> None:
        self._due = min(self._due, due)

    def _send(self, message: Message) -> None:
        self._instructions.append(Send(message))
