"""What a caller holds of a request while it arrives: the same for the blocking and the asyncio face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lighttts.client.events import Arrived, Chunk, Event, Failed, Finished, Started
from lighttts.errors import Cancelled, LightTTSError
from lighttts.transport.wire import SpeechRequest

_EMPTY: dict[str, Chunk] = {
    "f32": np.zeros(0, np.float32),
    "s16": np.zeros(0, np.int16),
    "mel": np.zeros((0, 80), np.float32),
    "tokens": np.zeros(0, np.int32),
}


class Receipt:
    """A request's progress. `tokens`: speech tokens (25 a second of speech) behind the chunks taken so far."""

    def __init__(self, asked: SpeechRequest) -> None:
        self.request_id = asked.request_id
        self.seed = asked.seed
        self.tokens = 0
        self.rate: int | None = None
        self.over = False
        self._error: LightTTSError | None = None
        self._empty = _EMPTY[asked.sample_type if asked.output == "audio" else asked.output]

    def take(self, event: Event) -> Chunk | None:
        """The chunk of an event, None if it has none. Raises the error of `Failed`."""
        if isinstance(event, Failed):
            self._error = event.error
            raise event.error
        if isinstance(event, Arrived):
            self.tokens = event.tokens
            return event.chunk
        if isinstance(event, Started):
            self.rate = event.sample_rate
        elif isinstance(event, Finished):
            self.tokens = event.tokens
            self.over = True
        return None

    def check(self) -> None:
        """Raises the error that has ended the request, if one has."""
        if self._error:
            raise self._error

    def cancelled(self) -> bool:
        """Marks the request cancelled by its owner; False if it was over already."""
        if self.over or self._error:
            return False
        self._error = Cancelled("the synthesis was closed before its end")
        return True

    def joined(self, chunks: Sequence[Chunk]) -> Chunk:
        """All `chunks` end to end, in a new array."""
        result: Chunk = np.concatenate([self._empty, *chunks])
        return result
