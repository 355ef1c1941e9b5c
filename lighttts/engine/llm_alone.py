"""Decode steps on a CPU, where the shape of every operation depends on the request alone.

Matrix products give other last bits for other batch sizes. So each request is prefilled alone and decoded in a batch of
`CPU_ROWS` rows, padded if need be, and attends in a call of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from lighttts.engine import llm_state
from lighttts.engine.kv_cache import ExtendAttend, KVCache, PrefillAttend, RowAttend
from lighttts.engine.llm_steps import Drawn, Piece
from lighttts.models.llm import SpeechLM
from lighttts.models.qwen2 import CausalAttend, Rotation

CPU_ROWS = 2
"""Rows of a decode call. Two take as long as one, for it is reading the weights that takes the time."""


class AloneSteps:
    lag = 0
    longest = sys.maxsize

    def __init__(self, model: SpeechLM, slots: int, max_length: int) -> None:
        self._model = model
        self._cache = KVCache(model.config, slots, max_length, model.device, model.dtype)
        self._rotary = model.rotary_table(max_length)
        self._embedding = llm_state.input_table(model, slots)
        self._state = torch.zeros((slots, llm_state.columns(model)), dtype=torch.int64)

    def cost(self, positions: int) -> int:
        return positions

    def prefill(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if len(piece.ids):
                self._extend(piece)
            assert piece.state is not None
            state = llm_state.settled(self._model, self._embedding, piece.slot, piece.state)
            self._state[piece.slot] = torch.tensor(state)

    def _extend(self, piece: Piece) -> None:
        embedded = self._model.embed(torch.from_numpy(piece.ids)[None])
        if piece.start:
            attend: CausalAttend = ExtendAttend(self._cache, piece.slot, piece.start)
        else:
            attend = PrefillAttend(self._cache, [piece.slot])
        turn = self._rotary[:, piece.start : piece.start + len(piece.ids)]
        self._model.body(embedded, Rotation(*turn), attend)

    def decode(self, rows: Sequence[tuple[int, int]]) -> Drawn:
        groups = [rows[at : at + CPU_ROWS] for at in range(0, len(rows), CPU_ROWS)]
        drawn: list[int] = torch.cat([self._decode(group) for group in groups]).tolist()
        return lambda: drawn

    def rest(self) -> None:
        self._cache.give_back()

    def _decode(self, group: Sequence[tuple[int, int]]) -> Tensor:
        slots = [slot for slot, _ in group]
        slots += slots[:1] * (CPU_ROWS - len(slots))
        state = self._state[torch.tensor(slots)]
        drawn = llm_state.draw(self._model, self._logits(state, RowAttend(self._cache, group)), state)
        self._state[torch.tensor(slots[: len(group)])] = llm_state.after(self._model, state, drawn)[: len(group)]
        return drawn[: len(group)]

    def _logits(self, state: Tensor, attend: RowAttend) -> Tensor:
        embedded = self._embedding[state[:, llm_state.INPUT]].unsqueeze(1)
        cosine, sine = self._rotary[:, state[:, llm_state.POSITION]][:, :, None, None]
        hidden = self._model.body(embedded, Rotation(cosine, sine), attend)[:, 0]
        logits: Tensor = self._model.llm_decoder(hidden)
        return logits.float()
