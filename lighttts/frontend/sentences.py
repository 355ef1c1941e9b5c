"""Cutting spoken text into the sentences that are synthesised one at a time.

The rule of FunAudioLLM/CosyVoice, `split_paragraph` in `cosyvoice/utils/frontend_utils.py`: cut after each sentence
mark, then join neighbours until they are long enough. Length is in characters for Chinese and in text tokens otherwise.
Beyond it, a stretch without any sentence mark is cut at commas, at spaces, or anywhere, so that no sentence outgrows
the language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LONG = 80
"""Sentences are not joined beyond this length ..."""
ENOUGH = 60
"""... once what has been joined is longer than this."""
SHORT = 20
"""A last sentence shorter than this joins the one before."""
LONGEST = 160
"""A stretch without sentence mark that is longer than this is cut where there is none."""

_CHINESE_MARKS = "。？！；：、.?!;"
_OTHER_MARKS = ".?!;:"
_FALLBACK_CUTS = (re.compile(r"(?<=[，,、])"), re.compile(r"(?<=\s)"))


def split(text: str, *, chinese: bool, count: Callable[[str], int]) -> list[str]:
    """The sentences of `text`; `count` gives the number of text tokens. Empty if `text` has nothing but marks.

    Marks that follow one another directly keep only the first; all else of `text` is in the sentences, in order.
    """
    length = len if chinese else count
    stretches = _stretches(text, _CHINESE_MARKS if chinese else _OTHER_MARKS)
    return _join([piece for stretch in stretches for piece in _cut(stretch, length, 0)], length)


def _stretches(text: str, marks: str) -> list[str]:
    """`text` cut after each of `marks` and the closing quote that may follow; a missing last mark is added."""
    if text and text[-1] not in marks:
        text += marks[0]
    stretches: list[str] = []
    for body, mark, quote in re.findall(rf'([^{marks}]*)([{marks}])(["”]?)', text):
        if body:
            stretches.append(body + mark + quote)
        elif stretches:
            stretches[-1] += quote
    return stretches


def _cut(stretch: str, length: Callable[[str], int], level: int) -> list[str]:
    """`stretch` whole if it is not too long, else in pieces for `_join`."""
    if length(stretch) <= LONGEST:
        return [stretch]
    if level == len(_FALLBACK_CUTS):
        return [stretch[at : at + LONG] for at in range(0, len(stretch), LONG)]
    pieces = [piece for piece in _FALLBACK_CUTS[level].split(stretch) if piece]
    return [part for piece in pieces for part in _cut(piece, length, level + 1)]


def _join(stretches: list[str], length: Callable[[str], int]) -> list[str]:
    sentences: list[str] = []
    current = ""
    for stretch in stretches:
        if length(current + stretch) > LONG and length(current) > ENOUGH:
            sentences.append(current)
            current = ""
        current += stretch
    if current and sentences and length(current) < SHORT:
        sentences[-1] += current
    elif current:
        sentences.append(current)
    return sentences
