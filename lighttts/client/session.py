"""The client's core: every request and query over one connection. Pure: messages, calls and the time go in,
instructions (`Send`, `Deliver`, `Connect`) come out of `take`.

Whoever asks while there is no connection waits, at most the connect timeout. While anything is expected of the broker,
silence is answered by another `Hello`, and silence after that means the broker is lost: what it was doing goes on over
the next connection, or fails in time; nothing waits for ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from lighttts.client.absence import Absence
from lighttts.client.brokers import Brokers
from lighttts.client.connection import Connection, Link
from lighttts.client.events import Instruction
from lighttts.client.failures import error_of
from lighttts.client.queries import Queries
from lighttts.client.script import Mark
from lighttts.client.stream import KNOWN_TO_BROKER, Phase, Stream, Timeouts
from lighttts.client.voices import Asking, Reply
from lighttts.errors import Cancelled, LightTTSError, NoWorker, ProtocolError, Unavailable
from lighttts.transport.schema import Buffer
from lighttts.transport.wire import (
    Error,
    Hello,
    ListVoices,
    Message,
    SpeechRequest,
    Voices,
    Welcome,
    decode,
)

WINDOW = 32
"""Frames of a request in flight to the caller, unless the broker allows fewer."""


class Session:
    """All requests of one client at one of `brokers` after the other; `hello` introduces it."""

    def __init__(self, brokers: Brokers, absence: Absence, timeouts: Timeouts, hello: Hello) -> None:
        self._timeouts = timeouts
        self._window = WINDOW
        self._streams: dict[str, Stream] = {}
        self._numbers = itertools.count(1)
        self._instructions: list[Instruction] = []
        self._queries = Queries(self._instructions.append)
        self.connection = Connection(brokers, absence, hello, self._instructions.append)
        self._due = math.inf

    def take(self) -> list[Instruction]:
        """The instructions since the last call, in order."""
        taken = [*self._instructions]
        self._instructions.clear()
        return taken

    # ---- callers ----

    def open(self, asked: SpeechRequest, now: float) -> None:
        """Begins a request; its events are delivered under its request id."""
        stream = Stream(asked, self._timeouts, self._instructions.append, now)
        self._streams[stream.id] = stream
        if self.connection.link is Link.READY:
            self._begin(stream, now)
        self._schedule(stream.due)

    def query(self, asking: Asking, key: int, now: float, *, patient: bool = False) -> None:
        """Asks a question; the answer is delivered under `key`. `patient`: the broker has work to do for it."""
        due = now + self._timeouts.connect + (self._timeouts.chunk if patient else 0.0)
        self._queries.ask(asking(key), due)
        self._schedule(due)
        if self.connection.link is Link.READY:
            self._post_queries(now)

    def new_key(self) -> int:
        """A key for `query`; may be called from any thread."""
        return next(self._numbers)

    def consumed(self, request_id: str, now: float) -> None:
        """The caller has taken one chunk."""
        stream = self._streams.get(request_id)
        if stream:
            stream.consumed(now)
            self._schedule(stream.due)

    def write(self, request_id: str, item: str | Mark, now: float) -> None:
        """The caller has written more of a text in pieces."""
        stream = self._streams.get(request_id)
        if stream:
            stream.write(item, now)
            self._schedule(stream.due)

    def cancel(self, request_id: str, now: float) -> None:
        """The caller wants no more of the request. Idempotent."""
        self.fail(request_id, Cancelled("the request was cancelled"), now)

    def fail(self, request_id: str, error: LightTTSError, now: float) -> None:
        """The caller cannot go on with the request, for this reason."""
        stream = self._streams.get(request_id)
        if stream:
            stream.fail(error, now)
            self._settle(stream)

    def close(self, now: float) -> None:
        """Cancels everything."""
        self.fail_all(Cancelled("the client was closed"), now)

    # ---- messages ----

    def disconnected(self, now: float) -> None:
        """The connection is lost."""
        if self.connection.link is not Link.LEFT:
            self._sever(f"the connection to the broker at {self.connection.endpoint} was lost: try again", now)
            self.connection.lost(now)

    def unopened(self, error: LightTTSError, now: float) -> None:
        """The connection that `Connect` asked for could not even be tried: what waits for it fails with `error`."""
        self.connection.unopened(now)
        self.fail_all(error, now)

    def _sever(self, why: str, now: float) -> None:
        """What the broker was doing is gone on with over the next connection."""
        for stream in [*self._streams.values()]:
            stream.sever(Unavailable(why), now)
            self._settle(stream)
        self._queries.sever()

    def received(self, frames: Sequence[Buffer], now: float) -> None:
        """Takes a message from the broker."""
        if self.connection.link is Link.LEFT:
            return
        if self.connection.heard(now):
            self._schedule(self._silence_due)
        try:
            message = decode(frames)
        except ProtocolError as error:
            self._misunderstood(f"what is not valid: {error.text}", now)
            return
        if isinstance(message, Welcome):
            self._welcomed(message, now)
        elif isinstance(message, Reply):
            self._answered(message, now)
        elif isinstance(message, Error) and not message.request_id:
            if not self.connection.speaks_older(frames, now):
                self._refused(error_of(message), now)
        else:
            self._for_stream(message, now)

    def _for_stream(self, message: Message, now: float) -> None:
        request_id = getattr(message, "request_id", None)
        if request_id is None:
            self._misunderstood(f"{type(message).__name__}, which no client understands", now)
            return
        stream = self._streams.get(request_id)
        if stream:
            stream.received(message, now)
            self._settle(stream)
            if isinstance(message, Error) and message.code == NoWorker.code:
                self._seek_workers(now)

    def _misunderstood(self, what: str, now: float) -> None:
        self.fail_all(ProtocolError(f"the broker at {self.connection.endpoint} sent {what}"), now)

    def _welcomed(self, message: Welcome, now: float) -> None:
        if not self.connection.welcomed(message, now):
            return
        self._window = min(WINDOW, max(1, message.max_credit))
        for stream in [*self._streams.values()]:
            if stream.phase is Phase.WAITING:
                self._begin(stream, now)
            elif stream.phase is Phase.SEVERED:
                self._expect(now)
                stream.resume(self._window, self.connection.version, now)
                self._schedule(stream.due)
        self._post_queries(now)

    def _answered(self, message: Reply, now: float) -> None:
        stream = self._queries.answer(message)
        if stream is None:
            return
        if isinstance(message, Voices) and message.names:
            stream.choose(message.names[0], now)
        elif not self._seek_workers(now):
            text = "the broker has no preset voice now: give a prompt, or start a lighttts-encode worker"
            stream.fail(NoWorker(text), now)
        self._settle(stream)

    def _seek_workers(self, now: float) -> bool:
        """The broker lacks workers. True if all that is under way goes on at another one, which may have them."""
        without = self.connection.endpoint
        if not self.connection.unfit(now):
            return False
        self._sever(f"the broker at {without} has no workers, and no other one answers: try again", now)
        return True

    def _refused(self, error: LightTTSError, now: float) -> None:
        """An error without a request id answers the last message: whatever has had no answer yet."""
        for stream in [*self._streams.values()]:
            if stream.phase in (Phase.WAITING, Phase.CHOOSING, Phase.ASKED):
                stream.fail(error, now)
                self._settle(stream)
        self._queries.fail(error)

    # ---- time ----

    def next_due(self) -> float:
        """When `tick` must be called at the latest; infinity if never."""
        return min(self._due, self.connection.due)

    def tick(self, now: float) -> None:
        """Ends what has run out of time."""
        if now < self.next_due():
            return
        absent = self.connection.absent(now)
        for stream in [*self._streams.values()]:
            stream.tick(now, absent)
            self._settle(stream)
        self._queries.tick(now, absent)
        if now >= self._silence_due:
            why = self.connection.mind_silence(now)
            if why:
                self._sever(why, now)
        self.connection.tick(now)
        self._due = min((*self._queries.dues(), *(stream.due for stream in self._streams.values())), default=math.inf)
        self._schedule(self._silence_due)

    @property
    def _expecting(self) -> bool:
        asked = any(stream.phase in KNOWN_TO_BROKER for stream in self._streams.values())
        return asked or self._queries.expecting

    @property
    def _silence_due(self) -> float:
        return self.connection.silence_due if self._expecting else math.inf

    # ---- helpers ----

    def fail_all(self, error: LightTTSError, now: float) -> None:
        """Fails every request and query; the broker is told to stop what it does for them."""
        for stream in [*self._streams.values()]:
            stream.fail(error, now)
            self._settle(stream)
        self._queries.fail(error)

    def _begin(self, stream: Stream, now: float) -> None:
        self._expect(now)
        if stream.begin(self._window, self.connection.version, now):
            self._queries.ask(ListVoices(self.new_key()), math.inf, stream)
            self._queries.post(self.connection.version)
        self._settle(stream)

    def _post_queries(self, now: float) -> None:
        self._expect(now)
        self._queries.post(self.connection.version)

    def _expect(self, now: float) -> None:
        """From now on the broker owes an answer; silence before does not count."""
        if not self._expecting:
            self.connection.heard(now)
        self._schedule(self.connection.silence_due)

    def _settle(self, stream: Stream) -> None:
        if stream.phase is Phase.OVER:
            self._streams.pop(stream.id, None)
        else:
            self._schedule(stream.due)

    def _schedule(self, due: float) -> None:
        self._due = min(self._due, due)
