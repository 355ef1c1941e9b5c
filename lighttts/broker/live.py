"""The text of a request that comes in pieces: what has come, what ids it has become, and how much is spoken. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lighttts.errors import ProtocolError
from lighttts.transport.schema import IntArray
from lighttts.transport.wire import TEXT_WINDOW, EncodedText, Finish, Flush, Piece

_NONE = np.zeros(0, np.int32)


class Part(NamedTuple):
    """Ids of a sentence; `final` ends it, `last`, of one without any, the request."""

    sentence: int
    final: bool
    last: bool
    ids: IntArray


@dataclass(slots=True)
class _Segment:
    """UTF-8 text up to a flush, beginning with a sentence that is not whole yet."""

    text: bytes = b""
    flushed: bool = False


@dataclass(slots=True)
class _Sentence:
    """One that is not spoken to its end. `size`: bytes of text that are with it."""

    ids: list[IntArray] = field(default_factory=list)
    whole: bool = False
    size: int = 0


class Live:
    """`heard`: when the client last said something. `method`: how it is spoken, once that is known."""

    def __init__(self, now: float) -> None:
        self.heard = now
        self.method = ""
        self.finished = False
        """There is no more text to come."""
        self.end: int | None = None
        """The number of the sentence without ids that ends the request, once it is known."""
        self.told = TEXT_WINDOW
        """The limit that the client knows of."""
        self._seq = self._received = self._spoken = 0
        self._segments: deque[_Segment] = deque()
        self._fresh = False
        self._asked: bool | None = None
        """Whether the text that an encode worker has ends with a flush; None if none has any."""
        self._number = self._passed = 0
        self._sentences: dict[int, _Sentence] = {}

    # ---- from the client -----------------------------------------------------------------------------------------

    def hear(self, message: Piece | Flush | Finish, now: float) -> None:
        """Takes in what the client says next. Raises `ProtocolError` if it may not."""
        if message.seq != self._seq:
            raise ProtocolError(f"{type(message).__name__} {message.seq} came where {self._seq} was due")
        if self.finished:
            raise ProtocolError(f"{type(message).__name__} came after Finish")
        self._seq += 1
        self.heard = now
        if isinstance(message, Piece):
            self._write(message.text.encode())
            return
        self.finished = isinstance(message, Finish)
        if self._segments and not self._segments[-1].flushed:
            self._segments[-1].flushed = self._fresh = True

    def _write(self, text: bytes) -> None:
        self._received += len(text)
        if self._received > self.limit:
            raise ProtocolError(
                f"{self._received} bytes of text came where {self.limit} were allowed: wait for Written"
            )
        if not self._segments or self._segments[-1].flushed:
            self._segments.append(_Segment())
        self._segments[-1].text += text
        self._fresh = True

    @property
    def limit(self) -> int:
        """Bytes of text that may be sent in all."""
        return self._spoken + TEXT_WINDOW

    # ---- to and from encode workers ------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether there is text that an encode worker has not seen."""
        return self._fresh and bool(self._segments)

    @property
    def waits(self) -> bool:
        """Whether an encode worker is to make something of what has come."""
        return self.due or self._asked is not None

    def work(self) -> tuple[str, bool]:
        """The text to be encoded now, and whether it ends with a flush."""
        segment = self._segments[0]
        self._asked, self._fresh = segment.flushed, False
        return segment.text.decode(), segment.flushed

    def take(self, result: EncodedText) -> list[Part]:
        """Takes in what an encode worker has made of it. Raises `ValueError` if that makes no sense."""
        segment, flushed = self._segments[0], self._asked
        text = segment.text[result.used :].decode()
        parts = self._parts(result)
        if result.used > len(segment.text) or (flushed and (text or not result.whole)):
            raise ValueError("not what was made of this text")
        self._asked = None
        segment.text = text.encode()
        if flushed:
            self._segments.popleft()
            self._fresh = bool(self._segments)
        self._enter(parts, result.used)
        return parts

    def _parts(self, result: EncodedText) -> list[Part]:
        if (
            sum(result.lengths) != len(result.text_ids)
            or len(result.text_ids[: (*result.lengths, 0)[0]]) < self._passed
        ):
            raise ValueError("lengths that do not fit")
        parts, at = [], 0
        for index, length in enumerate(result.lengths):
            ids = result.text_ids[at : at + length]
            final = result.whole or index + 1 < len(result.lengths)
            parts.append(Part(self._number + index, final, False, ids[self._passed :] if index == 0 else ids))
            at += length
        return [part for part in parts if part.final or len(part.ids)]

    def _enter(self, parts: list[Part], used: int) -> None:
        for sentence, final, _, ids in parts:
            kept = self._sentences.setdefault(sentence, _Sentence())
            kept.ids.append(ids)
            kept.whole = final
            self._number, self._passed = (sentence + 1, 0) if final else (sentence, self._passed + len(ids))
        if self._sentences.get(self._number - 1):
            self._sentences[self._number - 1].size += used
        else:
            self._spoken += used

    def conclude(self) -> list[Part]:
        """The end of the request, once there is no text before it."""
        if not self.finished or self._segments or self.end is not None:
            return []
        self.end = self._number
        self._sentences[self.end] = _Sentence([_NONE], whole=True)
        return [Part(self.end, True, True, _NONE)]

    # ---- to and from llm workers ---------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        """All ids of the sentences that are not spoken to their end."""
        return [
            Part(number, sentence.whole, number == self.end, np.concatenate(sentence.ids))
            for number, sentence in self._sentences.items()
        ]

    def whole(self, sentence: int) -> bool:
        """Whether all ids of `sentence`, which is not spoken to its end, are there."""
        kept = self._sentences.get(sentence)
        return kept is not None and kept.whole

    def spoken(self, sentence: int) -> None:
        """All tokens of `sentence` are made."""
        self._spoken += self._sentences.pop(sentence).size

    @property
    def rests(self) -> bool:
        """Whether nothing can be done until the client says more."""
        return not self.waits and not any(sentence.whole for sentence in self._sentences.values())
