"""Text that a caller writes piece by piece, on its way to the broker: as much of it as that takes. Pure."""

from __future__ import annotations

import enum
from collections import deque

from lighttts.transport.wire import MAX_PIECE, TEXT_WINDOW, Finish, Flush, Message, Piece


class Mark(enum.Enum):
    """What stands between pieces of text, and at their end."""

    FLUSH = Flush
    END = Finish


class Script:
    """What was written and is not sent; `complete` once the end is sent."""

    def __init__(self) -> None:
        self.limit = TEXT_WINDOW
        """Bytes that the broker takes in all, for the time being."""
        self.complete = False
        self._waiting: deque[bytes | Mark] = deque()
        self._sent = self._seq = 0

    def add(self, item: str | Mark) -> None:
        """The caller has written this."""
        self._waiting.append(item if isinstance(item, Mark) else item.encode())

    def take(self, request_id: str) -> tuple[list[Message], int]:
        """The messages that may be sent now, and how many bytes of text are in them."""
        messages: list[Message] = []
        before = self._sent
        while self._waiting:
            item = self._waiting[0]
            if isinstance(item, Mark):
                messages.append(item.value(request_id, self._seq))
                self.complete = item is Mark.END
                self._waiting.popleft()
            else:
                piece = item[: min(MAX_PIECE, self.limit - self._sent)].decode(errors="ignore")
                size = len(piece.encode())
                if item and not size:
                    break
                self._waiting[0] = item[size:]
                if size == len(item):
                    self._waiting.popleft()
                if not size:
                    continue
                self._sent += size
                messages.append(Piece(request_id, self._seq, piece))
            self._seq += 1
        return messages, self._sent - before
