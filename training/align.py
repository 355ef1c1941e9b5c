"""Which phoneme each character of a text is spoken by, from the teacher's own pronunciation.

The teacher reads a sentence as phonemes and says how long each lasts. Its pronunciation comes word by word, so a
character's place among the phonemes is known up to its place within its word, where letters are spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_PHONEMES = 400  # of one chunk, as the teacher limits it


@dataclass(frozen=True)
class Word:
    """A word or mark as the teacher says it; `followed` by a space or not."""

    text: str
    phonemes: str
    followed: bool


class Reader(Protocol):
    """How the teacher reads: sentences of a text, what is spoken of a sentence, and that word by word."""

    vocabulary: dict[str, int]

    def sentences(self, text: str) -> list[str]: ...

    def spoken(self, sentence: str) -> str: ...

    def words(self, spoken: str) -> Iterable[Word]: ...


@dataclass(frozen=True)
class Reading:
    """A sentence as the teacher reads it.

    phone: (n,) uint8 phoneme ids; each chunk begins and ends with 0 (silence).
    place: (characters + 1,) float32, position among the phonemes at which each character begins, never falling.
    """

    phone: NDArray[np.uint8]
    place: NDArray[np.float32]


def _carry(source: str, target: str, place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places of ``target``'s characters, given those of ``source``'s; unmatched ones are interpolated."""
    if source == target:
        return place
    known = np.full(len(target), np.nan, np.float32)
    for a, b, size in SequenceMatcher(None, source, target, autojunk=False).get_matching_blocks():
        known[b : b + size] = place[a : a + size]
    matched = np.flatnonzero(~np.isnan(known))
    if len(matched) == 0:
        return np.linspace(place[0], place[-1], len(target) + 1, dtype=np.float32)
    filled = np.interp(np.arange(len(target)), matched, known[matched])
    return np.append(filled, place[-1]).astype(np.float32)


def _read_chunk(reader: Reader, text: str) -> tuple[list[int], NDArray[np.float32]]:
    """Phoneme ids of one chunk, without the silences, and the place (from 0) of each character of ``text``."""
    spoken, vocabulary = reader.spoken(text), reader.vocabulary
    ids: list[int] = []
    place = np.full(len(spoken) + 1, np.nan, np.float32)
    at = 0
    for word in reader.words(spoken):
        begin = spoken.find(word.text, at)
        begin = at if begin < 0 else begin
        sounds = [vocabulary[c] for c in word.phonemes if c in vocabulary]
        size = min(len(word.text), len(spoken) - begin)
        place[begin : begin + size] = len(ids) + len(sounds) * np.arange(size) / max(size, 1)
        ids += sounds
        if word.followed:
            ids.append(vocabulary[" "])
        at = begin + size
    if ids and ids[-1] == vocabulary[" "]:
        ids.pop()
    place[-1] = len(ids)
    known = np.flatnonzero(~np.isnan(place))
    place = np.interp(np.arange(len(place)), known, place[known]).astype(np.float32)
    return ids, _carry(spoken, text, np.minimum(place, len(ids)))


def read(reader: Reader, text: str) -> Reading | None:
    """How the teacher reads ``text``, or None if it cannot (nothing to say, or a chunk beyond its limit)."""
    phone: list[int] = []
    places = np.zeros(len(text) + 1, np.float32)
    at = 0
    for sentence in reader.sentences(text):
        begin = text.index(sentence, at)
        ids, place = _read_chunk(reader, sentence)
        if not ids or len(ids) > MAX_PHONEMES:
            return None
        places[at:begin] = len(phone)
        at = begin + len(sentence)
        places[begin : at + 1] = len(phone) + 1 + place
        phone += [0, *ids, 0]
    places[at:] = len(phone)
    if not phone:
        return None
    return Reading(np.array(phone, np.uint8), np.maximum.accumulate(places))


def unescape(text: str) -> tuple[str, NDArray[np.int64]]:
    r"""``text`` with ``\"`` as ``"``, and for each character of ``text`` (and its end) where it is in the result."""
    kept = [i for i, c in enumerate(text) if not (c == "\\" and text[i + 1 : i + 2] == '"')]
    where = np.searchsorted(np.array(kept), np.arange(len(text) + 1))
    return "".join(text[i] for i in kept), where
