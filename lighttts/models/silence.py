"""Silence that is passed over: of a run of silent speech tokens, CosyVoice3 speaks the first few alone.

Upstream drops what exceeds `LONGEST` such tokens in a row on the way from the language model to the flow; the language
model has made them and goes on from them. For CosyVoice2 it knows of no such tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lighttts.models.directory import ModelDirectory

LONGEST = 5
"""Silent tokens in a row that are spoken."""
_SILENT: dict[int, frozenset[int]] = {
    2: frozenset(),
    3: frozenset({1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323}),
}
"""Codes of silence and breath in the speech tokenizer of each version."""


def silent_tokens(directory: ModelDirectory) -> frozenset[int]:
    """The speech tokens of a model that are silence."""
    return _SILENT[directory.version]


class Pauses:
    """Shortens the pauses of sentences whose tokens come a few at a time. How they are cut makes no difference."""

    def __init__(self, silent: frozenset[int]) -> None:
        self._silent = silent
        self._run = 0
        """Silent tokens that the last one ends a run of."""

    def spoken(self, tokens: npt.NDArray[np.int32], final: bool) -> npt.NDArray[np.int32]:
        """Those of the next `tokens` (n,) that are not passed over; `final` ends the sentence, and any run with it."""
        keep = np.ones(len(tokens), bool)
        for index, token in enumerate(tokens.tolist()):
            self._run = self._run + 1 if token in self._silent else 0
            keep[index] = self._run <= LONGEST
        if final:
            self._run = 0
        return tokens[keep]
