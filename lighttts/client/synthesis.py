"""What the blocking face gives whoever asks for speech: `Synthesis`, and `Talk`, whose text is still being written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lighttts.client.events import Chunk, Event
from lighttts.client.loop import ClientLoop, Sink
from lighttts.client.receipt import Receipt
from lighttts.client.request import checked_piece
from lighttts.client.room import SLICE, Room, ended
from lighttts.client.script import Mark
from lighttts.errors import InvalidInput, LightTTSError
from lighttts.transport.wire import SpeechRequest

if TYPE_CHECKING:
    from lighttts.client.sync import Client


class Synthesis:
    """Speech on its way: an iterator of chunks (read-only arrays) in order, each exactly once.

    Leaving a `with`, `close`, and dropping it before its end cancel the request. At most a window of chunks waits here:
    who does not read stops the broker, not the memory, and gets `SlowClient` after `broker.slow_client_s` (a minute).
    For one thread at a time.
    """

    def __init__(self, client: Client, loop: ClientLoop, asked: SpeechRequest, retries: int) -> None:
        self._client = client
        self._loop = loop
        self._receipt = Receipt(asked)
        self._mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        loop.open(asked, self._sink(), retries)
        loop.cancel_with(self, asked.request_id)

    def _sink(self) -> Sink:
        return self._mailbox

    @property
    def request_id(self) -> str:
        """The request's id, as in the broker's log; retries have `.1`, `.2` and so on behind it."""
        return self._receipt.request_id

    @property
    def seed(self) -> int:
        """The seed that makes this audio again."""
        return self._receipt.seed

    @property
    def tokens(self) -> int:
        """Speech tokens (25 a second) behind the chunks taken so far; after the end, of the whole request, and
        with CosyVoice3 also those of long silence that were not spoken."""
        return self._receipt.tokens

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

    def close(self) -> None:
        """Cancels the request if it is not over; reading on raises `Cancelled`. Idempotent, from any thread."""
        if self._receipt.cancelled():
            self._loop.cancel(self.request_id)

    cancel = close

    def __enter__(self) -> Synthesis:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Talk(Synthesis):
    """Speech of a text that is being written: `write` it in one thread, and read the chunks in the same or another.

    Who writes faster than it is spoken waits in `write`: the broker takes 16 KiB of unspoken text.
    """

    def __init__(self, client: Client, loop: ClientLoop, asked: SpeechRequest) -> None:
        self._ended = False
        super().__init__(client, loop, asked, 0)
        self._writer = _Writer(loop, self._room, asked.request_id)

    def _sink(self) -> Sink:
        self._room = Room(self._mailbox)
        return self._room

    def write(self, text: str) -> None:
        """More of the text, cut anywhere. Raises what has ended the request, `InvalidInput` after the end."""
        if self._ended:
            raise ended()
        self._writer.write(text)

    def flush(self) -> None:
        """What was written is spoken to its end, as far as it has come; what follows is a sentence of its own."""
        if self._ended:
            raise ended()
        self._loop.write(self.request_id, Mark.FLUSH)

    def end(self) -> None:
        """There is no more text; the chunks end when all is spoken. Idempotent."""
        if not self._ended:
            self._ended = True
            self._loop.write(self.request_id, Mark.END)

    def write_all(self, pieces: Iterable[str]) -> None:
        """Writes `pieces` and ends, in a thread of its own; what they raise is told to whoever reads."""
        self._ended = True
        # The thread knows what to write to, not what is read from: a request that is dropped must end.
        threading.Thread(target=self._writer.run, args=(pieces,), name="lighttts-text", daemon=True).start()


class _Writer:
    """Writes the text of one request."""

    def __init__(self, loop: ClientLoop, room: Room, request_id: str) -> None:
        self._loop = loop
        self._room = room
        self._request_id = request_id

    def run(self, pieces: Iterable[str]) -> None:
        """Writes all pieces, as long as anybody wants to hear them."""
        try:
            for text in pieces:
                self.write(text)
        except LightTTSError as error:
            self._loop.fail(self._request_id, error)
        except Exception as error:
            failure = InvalidInput(f"the text's pieces failed: {type(error).__name__}: {error}", field="text")
            failure.__cause__ = error
            self._loop.fail(self._request_id, failure)
        else:
            self._loop.write(self._request_id, Mark.END)

    def write(self, text: str) -> None:
        """Writes a piece, slice by slice."""
        text = checked_piece(text)
        for at in range(0, len(text), SLICE):
            piece = text[at : at + SLICE]
            self._room.enter(len(piece.encode()))
            self._loop.write(self._request_id, piece)
