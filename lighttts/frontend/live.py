"""Text that is still being written -> token ids, as soon as nothing that follows can change them. Pure.

Where a sentence ends, and what its ids are, depends on the text alone, whatever pieces it comes in: all of it is
decided at the borders between words, each by the words around it.

1. A word ends at white space, before a Chinese mark behind a Chinese letter, behind Chinese marks, and when it is long.
2. Numbers are spelled out together with the words beside them: a border is quiet if neither of the two words before it
   nor the one behind it has a digit or a sign. What stands between quiet borders is made spoken by itself, and no token
   reaches across one. So the ids of a text up to a quiet border are the first of the whole text's.
3. A sentence ends behind a sentence mark or a line, once it is long enough; else at a quiet border once it is too long;
   and where the text is flushed. What has nothing to speak is no sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lighttts.frontend.prompt import Int32
from lighttts.frontend.text import as_spoken, has_marks, is_speakable, tidy
from lighttts.frontend.tokenizer import TextTokenizer

_NONE = np.zeros(0, np.int32)
_LONG_WORD = 256
_WIDE = "\u3000-\u9fff\uff00-\uffef"
"""Characters that no blanks stand between: Chinese letters and marks, kana."""
_CHINESE_MARKS = "，。！？；：、…"
_WORDS = re.compile(rf"\S{{1,{_LONG_WORD}}}")
_PARTS = re.compile(
    rf"(?<=[\u4e00-\u9fff])(?=[{_CHINESE_MARKS}])|(?<=[{_CHINESE_MARKS}”』」）])(?=[^{_CHINESE_MARKS}\"'”’』」）])"
)
_NUMBER = re.compile(r"[\d²³$€£¥%°+=#@&/<>|~^*_]")
_SENTENCE_END = re.compile(r"""(?:[.!?;…]["'”’)]*|[。！？；…]["'”’』」）]*)$""")


class Measure(NamedTuple):
    """Bytes from which on a sentence ends at a mark, and at any quiet border; at any border at twice as many."""

    least: int
    most: int


MEASURES = {"sentences": Measure(8, 400), "interleaved": Measure(240, 640)}
"""By how the text is spoken. Sentence by sentence, each is waited for; interleaved, only the cache is to be spared."""


@dataclass(frozen=True)
class _Word:
    """`end`: its border; `complete`: nothing that follows can make it longer."""

    start: int
    end: int
    complete: bool
    number: bool


@dataclass(frozen=True, eq=False)
class LiveIds:
    """Ids of sentences, all whole but for the last one where `whole` is false; `used`: bytes of the text done with."""

    sentences: tuple[Int32, ...]
    whole: bool
    used: int


class LiveText:
    """Encodes for one model's tokenizer. Safe to share between threads."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, method: str, *, flush: bool) -> LiveIds:
        """Ids of `text`, which begins where a sentence does, as far as they are certain; with `flush` all of them.

        `method`: "sentences" gives whole sentences only, "interleaved" the beginning of the next one too. Raises
        `InvalidInput` for a mark that the model does not know.
        """
        sentences: list[Int32] = []
        start = 0
        while end := _sentence_end(text, start, MEASURES[method], flush):
            if is_speakable(text[start : end.at]):
                sentences.append(self._whole(text[start : end.at], method, closed=end.closed))
            start = end.at
        whole = flush or method == "sentences" or not len(rest := self._begun(text[start:]))
        if not whole:
            sentences.append(rest)
        return LiveIds(tuple(sentences), whole, len(text[:start].encode()))

    def _whole(self, sentence: str, method: str, *, closed: bool) -> Int32:
        said = _spoken(sentence, len(sentence), method == "interleaved")
        if closed and said[-1:].isalnum():
            said += "。" if re.search(f"[{_WIDE}]$", said) else "."
        return self._tokenizer.encode(said)

    def _begun(self, text: str) -> Int32:
        """The ids up to the last quiet border of a sentence that goes on; none while there is nothing to speak."""
        words = _words(text, flush=False)
        quiet = [word.end for index, word in enumerate(words) if _quiet(text, words, index)]
        if not quiet or not is_speakable(text[: quiet[-1]]):
            return _NONE
        return self._tokenizer.encode(_spoken(text, quiet[-1], apart=True))


class _End(NamedTuple):
    """`closed`: it ends by itself, and not because it was too long."""

    at: int
    closed: bool


def _sentence_end(text: str, start: int, measure: Measure, flush: bool) -> _End | None:
    """Where the sentence that begins at `start` ends; None if that cannot be told yet, or there is none."""
    # A sentence is seldom longer than this; to look through all that follows, for each, would take its square in time.
    near = text[start : start + 3 * measure.most]
    if start + len(near) < len(text) and (end := _end_within(near, start, measure, flush=False)):
        return end
    return _end_within(text[start:], start, measure, flush)


def _end_within(rest: str, start: int, measure: Measure, flush: bool) -> _End | None:
    """Where the sentence at the beginning of `rest` ends, which stands at `start` of the text."""
    words = _words(rest, flush=flush)
    begin = words[0].start if words else 0
    for index, word in enumerate(words):
        if not word.complete:
            break
        length = len(rest[begin : word.end].encode())
        gap = rest[word.end : words[index + 1].start] if index + 1 < len(words) else rest[word.end :]
        marked = "\n" in tidy(gap) or _SENTENCE_END.search(rest[word.start : word.end])
        if marked and length >= measure.least and is_speakable(rest[: word.end]) and word.end < len(rest):
            return _End(start + word.end, closed=True)
        if length >= measure.most:
            if not flush and not (index + 1 < len(words) and words[index + 1].complete):
                break
            if _quiet(rest, words, index) or length >= 2 * measure.most:
                return _End(start + word.end, closed=False)
    return _End(start + len(rest), closed=True) if flush and rest else None


def _words(text: str, *, flush: bool) -> list[_Word]:
    """The words of `text` with their white space left out; the last one is complete if nothing can follow it."""
    words: list[_Word] = []
    for match in _WORDS.finditer(text):
        borders = [match.start(), *(match.start() + part.start() for part in _PARTS.finditer(match[0])), match.end()]
        for begin, end in pairwise(borders):
            complete = flush or end < len(text) or end - match.start() == _LONG_WORD
            words.append(_Word(begin, end, complete, bool(_NUMBER.search(text[begin:end]))))
    return words


def _quiet(text: str, words: list[_Word], index: int) -> bool:
    """Whether the border behind a word is quiet, as far as can be told."""
    if index + 1 >= len(words) or not words[index + 1].complete:
        return False
    around = words[max(0, index - 1) : index + 2]
    if any(word.number for word in around):
        return False
    before, behind = text[words[index].end - 1], text[words[index + 1].start]
    if words[index].end < words[index + 1].start:
        return not re.match(f"[{_WIDE}]", before) and not re.match(f"[{_WIDE}]", behind)
    return behind in _CHINESE_MARKS and before.isalpha()


def _spoken(text: str, end: int, apart: bool) -> str:
    """`text` up to `end` made spoken; `apart`: each part between quiet borders by itself."""
    words = _words(text, flush=True)
    borders = [word.end for index, word in enumerate(words) if apart and word.end < end and _quiet(text, words, index)]
    said = ""
    for begin, stop in zip([0, *borders], [*borders, end], strict=True):
        part = tidy(text[begin:stop])
        spoken = part.strip() if has_marks(part) else _as_spoken(part)
        said += " " * (part[:1].isspace() and bool(said) and bool(spoken)) + spoken
    return said


@lru_cache(maxsize=20_000)
def _as_spoken(part: str) -> str:
    """The same words are asked for with every piece that comes behind them."""
    return as_spoken(part)
