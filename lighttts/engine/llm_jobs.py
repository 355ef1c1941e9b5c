"""What is asked of `lighttts.engine.llm`, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class GenerateJob:
    """One request for speech tokens."""

    key: Hashable
    text: npt.NDArray[np.int32]
    """Text token ids, those of the prompt's text first."""
    text_tokens: int
    """How many of them are not the prompt's: the bounds on the number of speech tokens are multiples of it."""
    prompt_tokens: npt.NDArray[np.int32]
    """Speech tokens of the prompt."""
    seed: int
    done_tokens: npt.NDArray[np.int32]
    """Speech tokens made already, by an engine that did not finish; numbering continues after them."""


@dataclass(frozen=True, eq=False)
class LiveJob:
    """One sentence whose text is fed while it is spoken."""

    key: Hashable
    prompt_text: npt.NDArray[np.int32]
    """Text token ids of the prompt."""
    prompt_tokens: npt.NDArray[np.int32]
    """Speech tokens of the prompt."""
    seed: int
    done_tokens: npt.NDArray[np.int32]
    """As in `GenerateJob`, with `FILL` where a block was over. The text is fed again from its beginning."""
    lead: int = 0
    """How many of the prompt's text tokens stand before all blocks: an instruction, with models trained so."""


@dataclass(frozen=True)
class TokenStep:
    """What a step made for one request: at most one token, none if the end of speech was drawn.

    `filled`: behind that token, if there is one, a block of text and speech is over (a live request's only).
    """

    key: Hashable
    tokens: tuple[int, ...]
    finished: bool
    filled: bool = False
