"""Corpus text: cleaning, normalising as the front end does, and reading WordNet's definitions.

What the language model reads in training must be what the front end hands it at run time: the normaliser's output with
its escaped quotes and a full stop where the sentence had none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from wetext import Normalizer

_SPACED_MARK = re.compile(r"\s+([,.;:!?])")
_NEEDS_NORMALISER = re.compile(r"[^a-zA-Z ,.;:!?'\"-]|[A-Z]{2}|\b[A-Za-z]{1,4}\.(?!$)")
_ENDS = (".", "!", "?", ";", ":")
_QUOTED = re.compile(r'"([^"]+)"')
FEWEST_WORDS, MOST_WORDS = 4, 22


@lru_cache(maxsize=1)
def _normaliser() -> Normalizer:
    return Normalizer()


def clean(line: str) -> str:
    """Undo tokenised spacing ("shaken ." -> "shaken."); such lines lose their double quotes, whose side is unknown."""
    line = " ".join(line.split())
    if _SPACED_MARK.search(line):
        line = _SPACED_MARK.sub(r"\1", line.replace('"', " "))
        line = re.sub(r"\s'\s|^'\s|\s'$", " ", line)
        line = re.sub(r"([,;:])(?=[,.;:!?])", "", _SPACED_MARK.sub(r"\1", line))
    return " ".join(line.split())


def normalise(line: str) -> str:
    """The front end's text of one sentence: numbers and abbreviations spelled, quotes escaped, closed by a mark."""
    text = line.replace('"', '\\"')
    if _NEEDS_NORMALISER.search(line):
        text = _normaliser().normalize(line)
    text = text.strip()
    return text if text.endswith(_ENDS) else text + "."


def read_lines(path: Path) -> Iterator[str]:
    """Cleaned lines of a one-sentence-a-line file, without empty ones."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line := clean(line):
            yield line


def wordnet_sentences(folder: Path) -> Iterator[str]:
    """WordNet's definitions (in `data.noun` and its kin) as sentences, "The act of playing an instrument.", and its
    examples of use; those of 4 to 22 words."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            _, mark, gloss = line.partition(" | ")
            if mark:
                for text in (_definition(gloss), *_QUOTED.findall(gloss)):
                    text = clean(text).strip(" ,-'")
                    if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS:
                        sentence = text[0].upper() + text[1:]
                        yield sentence if sentence.endswith(_ENDS) else sentence + "."


def _definition(gloss: str) -> str:
    """The words of a gloss before its examples and without what is in brackets."""
    text = re.sub(r"\([^)]*\)", " ", gloss.split(";")[0].split('"')[0])
    return re.sub(r"[^a-zA-Z ,'-]", " ", text)
