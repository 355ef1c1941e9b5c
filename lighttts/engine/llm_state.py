"""What a decode step knows of each request: a row of int64 numbers, and how it goes from one step to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from lighttts.models.llm import SpeechLM
from lighttts.models.sampling import sample

INPUT, POSITION, SEED, STEP, MINIMUM, HISTORY = range(6)
"""Columns: the input as a row of `SpeechLM.input_table`, its position, the request's seed, index of the token to be
drawn, tokens before which the end of speech is excluded, and from `HISTORY` on the last tokens, the latest at the end,
-1 where there are none."""

NEVER = 1 << 40
"""A `MINIMUM` that no step reaches."""


def columns(model: SpeechLM) -> int:
    """Length of a row."""
    return HISTORY + model.sampling.win_size


def input_table(model: SpeechLM, slots: int) -> Tensor:
    """Embeddings [task + speech + stops + slots, width]: inputs of a decode step are of these, so one look-up does.

    The last row is slot 0's own, the one before it slot 1's, and so on: see `settled`.
    """
    table = model.input_table()
    return torch.cat([table, table.new_zeros(slots, table.shape[1])])


def settled(model: SpeechLM, table: Tensor, slot: int, state: list[int]) -> list[int]:
    """The row `state` as a slot is to have it: a text token for its input goes to the slot's own row of `table`."""
    if state[INPUT] >= 0:
        return state
    row = len(table) - 1 - slot
    table[row] = model.body.embed_tokens.weight[state[INPUT] + model.vocabulary.text]
    return [row, *state[1:]]


def draw(model: SpeechLM, logits: Tensor, rows: Tensor) -> Tensor:
    """The tokens drawn, int64 [rows], stop ids included, from float32 `logits` [rows, vocabulary], written over."""
    early = rows[:, STEP] < rows[:, MINIMUM]
    logits[:, model.vocabulary.end_of_speech].masked_fill_(early, -torch.inf)
    return sample(logits, rows[:, HISTORY:], rows[:, SEED], rows[:, STEP], model.sampling)


def after(model: SpeechLM, rows: Tensor, drawn: Tensor) -> Tensor:
    """The rows one step on."""
    following = rows.roll(-1, 1)
    following[:, :HISTORY] = rows[:, :HISTORY]
    following[:, INPUT] = drawn + model.vocabulary.task
    following[:, POSITION] += 1
    following[:, STEP] += 1
    following[:, -1] = drawn
    return following
