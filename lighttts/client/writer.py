"""Writing a text whose speech is on its way: what threads and tasks do alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lighttts.client.loop import ClientLoop
from lighttts.client.request import checked_piece
from lighttts.client.room import ended
from lighttts.client.script import Mark
from lighttts.errors import InvalidInput, LightTTSError

SLICE = 2048
"""Most characters handed over at once."""


class Writer:
    """Writes the text of one request."""

    def __init__(self, loop: ClientLoop, request_id: str) -> None:
        self._loop = loop
        self._request_id = request_id
        self._ended = False

    def check(self) -> None:
        """Raises `InvalidInput` after the end."""
        if self._ended:
            raise ended()

    def flush(self) -> None:
        """What was written is to be spoken to its end."""
        self.check()
        self._loop.write(self._request_id, Mark.FLUSH)

    def end(self) -> None:
        """There is no more. Idempotent."""
        if not self._ended:
            self.leave()
            self._loop.write(self._request_id, Mark.END)

    def leave(self) -> None:
        """All that follows, and the end, is written by `whole`."""
        self._ended = True

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is written within ends the text; what is raised within is told to whoever reads."""
        try:
            yield
        except LightTTSError as error:
            self._loop.fail(self._request_id, error)
        except Exception as error:
            failure = InvalidInput(f"the text's pieces failed: {type(error).__name__}: {error}", field="text")
            failure.__cause__ = error
            self._loop.fail(self._request_id, failure)
        else:
            self._loop.write(self._request_id, Mark.END)

    def _slices(self, text: str) -> Iterator[str]:
        """`text` in what is handed over at once."""
        text = checked_piece(text)
        return (text[at : at + SLICE] for at in range(0, len(text), SLICE))

    def _hand_over(self, piece: str) -> None:
        self._loop.write(self._request_id, piece)
