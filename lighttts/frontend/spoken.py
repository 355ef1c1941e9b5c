"""Written text to spoken text: numbers, dates, money and units become words, by wetext's grammars.

The grammars refuse some inputs whole (a digit next to a bracket is enough) and take time that grows faster than the
text. So text goes through in chunks, and a chunk that is refused is halved until the refused part is a single token,
which stays as it is but for its digits. Nothing is dropped.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby

from wetext import Normalizer

_CHUNK = 400
_ENGLISH = Normalizer(lang="en")
_CHINESE = Normalizer(lang="zh", remove_erhua=False)

_SENTENCE_END = re.compile(r"[.!?;]\s|[。！？；]")
_SPACE = re.compile(r"\s")
_WORD_OR_SIGN = re.compile(r"[\w.,:/'’%$€£-]+|[^\w.,:/'’%$€£-]")
_DIGITS_OR_NOT = re.compile(r"\d+|\D+")
_POWERS = {"²": "squared", "³": "cubed"}


def english(text: str) -> str:
    """`text` as it is spoken in English, white space collapsed. The result has no digits of any script."""
    spoken = _by_chunks(" ".join(text.split()), _ENGLISH)
    return _without_digits(spoken)


def chinese(text: str) -> str:
    """`text` as it is spoken in Mandarin; Latin words in it stay as they are."""
    return _by_chunks(text, _CHINESE)


def _by_chunks(text: str, grammar: Normalizer) -> str:
    parts: list[str] = []
    start = 0
    while start < len(text):
        end = _chunk_end(text, start)
        parts.append(_keeping_margins(text[start:end], grammar))
        start = end
    return "".join(parts)


def _chunk_end(text: str, start: int) -> int:
    """End of the chunk that begins at `start`: after its last sentence, else its last space, else at full length."""
    if len(text) - start <= _CHUNK:
        return len(text)
    for boundary in (_SENTENCE_END, _SPACE):
        ends = [match.end() for match in boundary.finditer(text, start, start + _CHUNK)]
        if ends:
            return ends[-1]
    return start + _CHUNK


def _keeping_margins(text: str, grammar: Normalizer) -> str:
    """`text` spoken, with the white space around it that the grammar would strip."""
    core = text.strip()
    if not core:
        return text
    before, _, after = text.partition(core)
    return before + _speak(core, grammar) + after


def _speak(text: str, grammar: Normalizer) -> str:
    try:
        spoken: str = grammar.normalize(text)
    except AssertionError:  # what wetext raises for a text that its grammar refuses; sometimes it returns "" instead
        spoken = ""
    if spoken:
        return spoken
    pieces = _smaller(text)
    return text if len(pieces) == 1 else _joined([_keeping_margins(piece, grammar) for piece in pieces])


def _smaller(text: str) -> list[str]:
    """`text` cut at the space nearest its middle, else into words and signs, else into digits and the rest."""
    spaces = [match.start() for match in _SPACE.finditer(text)]
    if spaces:
        middle = min(spaces, key=lambda at: abs(at - len(text) // 2))
        return [text[:middle], text[middle:]]
    words = _WORD_OR_SIGN.findall(text)
    return words if len(words) > 1 else _DIGITS_OR_NOT.findall(text)


def _without_digits(text: str) -> str:
    """Spell the digits that the grammar let through: those of refused tokens and of scripts it does not know."""
    runs = ["".join(run) for _, run in groupby(text, str.isdigit)]
    return _joined([_spelled(run) if run[0].isdigit() else run for run in runs])


def _spelled(digits: str) -> str:
    if digits in _POWERS:
        return _POWERS[digits]
    return _speak("".join(str(unicodedata.digit(digit)) for digit in digits), _ENGLISH)


def _joined(parts: list[str]) -> str:
    """`parts` in one, with a space where two words would otherwise run together."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1][-1].isalnum() and part[:1].isalnum():
            joined.append(" ")
        if part:
            joined.append(part)
    return "".join(joined)
