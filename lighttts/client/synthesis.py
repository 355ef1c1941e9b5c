"""What the blocking face gives whoever asks for speech: `Synthesis`, and `Talk`, whose text is still being written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lighttts.client.events import Chunk, Event
from lighttts.client.holding import Holding
from lighttts.client.loop import ClientLoop, Sink
from lighttts.client.room import Room
from lighttts.client.writer import Writer
from lighttts.transport.wire import SpeechRequest

if TYPE_CHECKING:
    from lighttts.client.sync import Client


class Synthesis(Holding):
    """Speech on its way: an iterator of chunks (read-only arrays) in order, each exactly once.

    Leaving a `with`, `close`, and dropping it before its end cancel the request. At most a window of chunks waits here:
    who does not read stops the broker, not the memory, and gets `SlowClient` after `broker.slow_client_s` (a minute).
    For one thread at a time, but `close` for any.
    """

    def __init__(self, client: Client, loop: ClientLoop, asked: SpeechRequest, retries: int) -> None:
        self._mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        super().__init__(client, loop, asked, self._sink(), retries)

    def _sink(self) -> Sink:
        return self._mailbox

    @property
    def sample_rate(self) -> int:
        """Samples a second; waits until the request is admitted. Raises what ended the request before."""
        self._receipt.check()
        while self._receipt.rate is None:
            self._receipt.take(self._mailbox.get())
        return self._receipt.rate

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._receipt.check()
        while not self._receipt.over:
            chunk = self._receipt.take(self._mailbox.get())
            if chunk is not None:
                self._loop.consumed(self.request_id)
                return chunk
        raise StopIteration

    def audio(self) -> Chunk:
        """All chunks not taken yet, in one array: samples (n,), or mel frames or tokens if those were asked for."""
        return self._receipt.joined([*self])

    def __enter__(self) -> Synthesis:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Talk(Synthesis):
    """Speech of a text that is being written: `write` it in one thread, and read the chunks in the same or another.

    Who writes faster than it is spoken waits in `write`: the broker takes 16 KiB of unspoken text.
    """

    def __init__(self, client: Client, loop: ClientLoop, asked: SpeechRequest) -> None:
        super().__init__(client, loop, asked, 0)
        self._writer = _Writer(loop, self._room, asked.request_id)

    def _sink(self) -> Sink:
        self._room = Room(self._mailbox)
        return self._room

    def write(self, text: str) -> None:
        """More of the text, cut anywhere. Raises what has ended the request, `InvalidInput` after the end."""
        self._writer.check()
        self._writer.write(text)

    def flush(self) -> None:
        """What was written is spoken to its end, as far as it has come; what follows is a sentence of its own."""
        self._writer.flush()

    def end(self) -> None:
        """There is no more text; the chunks end when all is spoken. Idempotent."""
        self._writer.end()

    def write_all(self, pieces: Iterable[str]) -> None:
        """Writes `pieces` and ends, in a thread of its own; what they raise is told to whoever reads."""
        self._writer.leave()
        # The thread knows what to write to, not what is read from: a request that is dropped must end.
        threading.Thread(target=self._writer.run, args=(pieces,), name="lighttts-text", daemon=True).start()


class _Writer(Writer):
    def __init__(self, loop: ClientLoop, room: Room, request_id: str) -> None:
        super().__init__(loop, request_id)
        self._room = room

    def run(self, pieces: Iterable[str]) -> None:
        """Writes all pieces, as long as anybody wants to hear them."""
        with self.whole():
            for text in pieces:
                self.write(text)

    def write(self, text: str) -> None:
        """Writes a piece, as there is room for it."""
        for piece in self._slices(text):
            self._room.enter(len(piece.encode()))
            self._hand_over(piece)
