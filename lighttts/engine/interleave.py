"""One sentence whose text comes piece by piece, as the language model's sequence. Pure: ids in, ids out.

The sequence is `[sos, (text, speech) ..., rest of the text, task id, speech ...]`, in blocks of so many tokens as the
model's `Mix` says: what FunAudioLLM/CosyVoice trains on (`cosyvoice/llm/llm.py: prepare_lm_input_target`) and comes to
in `inference_bistream`. The prompt's text comes before the sentence's own, its speech fills the first blocks; an
instruction, `lead`, may stand before all of them.

A block is over when the model draws `fill`, and after its last speech token, where `fill` is taken without a draw;
`fill` is not fed back. Blocks are made while there is text enough for one, so the sequence depends on the text and the
draws, and in no way on when the text comes. Text that is over leaves less than a block: the rest.
"""

from __future__ import annotations

import enum
from collections import deque

import numpy as np
import numpy.typing as npt

from lighttts.models.interleave import Mix
from lighttts.models.llm import Vocabulary

FILL = -1
"""Stands for `fill` among the tokens made of a sentence, whatever the model's own id of it."""


class _At(enum.Enum):
    BORDER = enum.auto()
    """Before a block or the rest: text is needed."""
    BLOCK = enum.auto()
    REST = enum.auto()
    """Behind the task id: speech until its end."""


class Interleave:
    """`made`: what was made of the sentence, `FILL` where a block was over; `done` by another engine to begin with."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        mix: Mix,
        lead: npt.NDArray[np.int32],
        prompt_text: npt.NDArray[np.int32],
        prompt_tokens: npt.NDArray[np.int32],
        done: npt.NDArray[np.int32],
    ) -> None:
        self._vocabulary = vocabulary
        self._mix = mix
        self._text = deque(prompt_text.tolist())
        self._prompt = deque(prompt_tokens.tolist())
        self._done = deque(done.tolist())
        self._pending = [vocabulary.sos, *lead.tolist()]
        self._at = _At.BORDER
        self._in_block = 0
        self._over = False
        self.made: list[int] = done.tolist()
        self.text_tokens = 0
        """Text tokens of the sentence's own so far."""

    @property
    def speech(self) -> int:
        """Speech tokens made so far."""
        return len(self.made) - self.made.count(FILL)

    @property
    def block_left(self) -> int | None:
        """Draws until the block is over at the latest; None behind the task id."""
        return None if self._at is _At.REST else self._mix.speech - self._in_block

    def feed(self, text: npt.NDArray[np.int32], *, last: bool) -> None:
        """More text ids; with `last` there are no others. Raises `ValueError` after that."""
        if self._over:
            raise ValueError("the sentence's text is over already")
        self._text.extend(text.tolist())
        self.text_tokens += len(text)
        self._over = last

    def stretch(self) -> npt.NDArray[np.int64] | None:
        """Sequence ids since the last token fed, up to the input of the next draw; None while text is lacking."""
        while True:
            if self._at is _At.BORDER and not self._enter():
                return None
            self._recite()
            if self._at is not _At.BORDER:
                ids, self._pending = np.array(self._pending, np.int64), []
                return ids

    def take(self, token: int) -> bool:
        """Takes in a draw, a stop id perhaps. True if it ends the sentence, or leaves it at a border."""
        if token >= self._vocabulary.speech:
            if self._at is _At.BLOCK:
                self._end_block()
            return True
        self.made.append(token)
        if self._at is _At.REST:
            return False
        self._in_block += 1
        if self._in_block < self._mix.speech:
            return False
        self._pending.append(self._vocabulary.speech_offset + token)
        self._end_block()
        return True

    @property
    def resting(self) -> bool:
        """Whether it stands at a border."""
        return self._at is _At.BORDER

    def _enter(self) -> bool:
        """Puts down the text of the next block, or the rest; False if it has not come."""
        if len(self._text) >= self._mix.text:
            self._pending += [self._text.popleft() for _ in range(self._mix.text)]
            self._at, self._in_block = _At.BLOCK, 0
        elif self._over:
            self._pending += [*self._text, self._vocabulary.task_id]
            self._text.clear()
            self._at = _At.REST
        return self._at is not _At.BORDER

    def _recite(self) -> None:
        """Puts down what of the speech is known: the prompt's, then what was made already."""
        mine = False
        while self._prompt or self._done:
            if self._at is _At.BLOCK and self._in_block == self._mix.speech:
                break
            mine = not self._prompt
            token = (self._done if mine else self._prompt).popleft()
            if token == FILL:
                self._at = _At.BORDER
                return
            self._pending.append(self._vocabulary.speech_offset + token)
            self._in_block += 1
        if self._at is _At.BLOCK and self._in_block == self._mix.speech:
            self._at = _At.BORDER
            if mine and self._done:
                self._done.popleft()
            elif mine:
                self.made.append(FILL)

    def _end_block(self) -> None:
        self.made.append(FILL)
        self._at = _At.BORDER
