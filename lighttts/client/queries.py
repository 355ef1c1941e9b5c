"""Questions that await an answer: those of callers, and those of requests that have to choose a voice. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lighttts.client.events import Answered, Deliver, Failed, Instruction, Send
from lighttts.client.failures import error_of
from lighttts.client.stream import Stream
from lighttts.client.voices import Question, Reply
from lighttts.errors import LightTTSError, ProtocolError
from lighttts.transport.wire import ListVoices, VoiceFailed, since


@dataclass
class _Query:
    message: Question
    due: float
    stream: Stream | None = None  # the request that waits for the first voice, if it is not a caller who asks
    sent: bool = False


class Queries:
    """All questions of a client, by number. `emit` takes the instructions they cause."""

    def __init__(self, emit: Callable[[Instruction], None]) -> None:
        self._emit = emit
        self._queries: dict[int, _Query] = {}

    def ask(self, message: Question, due: float, stream: Stream | None = None) -> None:
        """Adds a question, which is not sent yet, of a caller or of `stream`; it has no answer if none comes by
        `due`."""
        self._queries[message.query_id] = _Query(message, due, stream)

    def post(self, version: int) -> None:
        """Sends the questions that have not been sent, in a version of the protocol."""
        for number, query in tuple(self._queries.items()):
            if query.sent:
                continue
            query.sent = True
            if isinstance(query.message, ListVoices) and version < since(query.message):
                query.message = ListVoices(number)
            if version < since(query.message):
                del self._queries[number]
                text = "the broker is of an older version, which knows no registered voices: upgrade it"
                self._emit(Deliver(number, Failed(ProtocolError(text))))
            else:
                self._emit(Send(query.message))

    def answer(self, message: Reply) -> Stream | None:
        """Takes an answer. Hands it to the caller, or returns the stream that has asked."""
        query = self._queries.pop(message.query_id, None)
        if query and query.stream is None:
            event = Failed(error_of(message)) if isinstance(message, VoiceFailed) else Answered(message)
            self._emit(Deliver(message.query_id, event))
        return query.stream if query else None

    def sever(self) -> None:
        """The connection is lost: callers' questions are asked again over the next, streams will ask anew."""
        self._queries = {number: query for number, query in self._queries.items() if query.stream is None}
        for query in self._queries.values():
            query.sent = False

    def fail(self, error: LightTTSError) -> None:
        """Ends all questions."""
        for number, query in self._queries.items():
            if query.stream is None:
                self._emit(Deliver(number, Failed(error)))
        self._queries.clear()

    def tick(self, now: float, no_answer: LightTTSError) -> None:
        """Ends the questions whose time is up with `no_answer`."""
        for number in [number for number, query in self._queries.items() if now >= query.due]:
            del self._queries[number]
            self._emit(Deliver(number, Failed(no_answer)))

    @property
    def expecting(self) -> bool:
        """Whether the broker owes an answer."""
        return any(query.sent for query in self._queries.values())

    def dues(self) -> Iterator[float]:
        """When `tick` has something to do."""
        return (query.due for query in self._queries.values())
