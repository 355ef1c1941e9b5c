"""Memory for answers that are given in one message: they are kept until their clients have taken them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lighttts.gateway.failures import RETRY_S, Refused


class Shelf:
    """One answer, as far as it is made."""

    def __init__(self, room: Room) -> None:
        self.content = bytearray()
        self._room = room

    def put(self, piece: bytes) -> None:
        """Adds to it. Raises `Refused` with 413 when it has become too long, with 503 when all together have."""
        if len(self.content) + len(piece) > self._room.longest:
            text = f"this makes more than {self._room.longest >> 20} MiB of audio: use SynthesizeStream"
            raise Refused(413, "too_large", text, field="text")
        self._room.take(len(piece))
        self.content += piece


class Room:
    """`longest`: bytes of an answer; `whole`: of all that are being made or sent.

    A client that takes nothing of its answer keeps it here until it leaves: gRPC offers no way to end such a call.
    """

    def __init__(self, longest: int, whole: int) -> None:
        self.longest = longest
        self._left = whole

    def take(self, count: int) -> None:
        """Sets bytes aside. Raises `Refused`."""
        if count > self._left:
            text = "too many answers wait for their clients to take them: use SynthesizeStream, or try again later"
            raise Refused(503, "overloaded", text, retry_after=RETRY_S)
        self._left -= count

    @contextmanager
    def shelf(self) -> Iterator[Shelf]:
        """Where an answer lies until the end."""
        shelf = Shelf(self)
        try:
            yield shelf
        finally:
            self._left += len(shelf.content)
