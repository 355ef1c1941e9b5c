"""What a batch of packed positions is put through: in torch, and on a GPU by Triton's kernels.

A batch is rows of positions of any requests; row i is position `positions[i]` of slot `slots[i]`, both int64. Rows of
the last slot, the idle one, are padding: they compute something and change no request.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighttts.engine import llm_state
from lighttts.engine.kv_cache import KVCache
from lighttts.models.llm import SpeechLM
from lighttts.models.qwen2 import Rotation

TILE = 16
"""Rows of `LLMOps.attend_tiles` that belong to one request."""


class LLMOps(Protocol):
    def embed(self, state: Tensor, slots: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs [rows, width], from `table`, and positions [rows] that the slots' state tells."""

    def norm_linear(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        """`linear` of the RMS norm of `x` [rows, width], whose weight is `norm`."""

    def norm_gate(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        """silu(gate) * up [rows, inner], where `linear` of the RMS norm of `x` is [gate, up]."""

    def add_linear(self, x: Tensor, y: Tensor, linear: nn.Linear) -> None:
        """`x += linear(y)` in place; `linear` has no bias."""

    def keep(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Puts the rows' keys, rotated, and values into the cache.

        `qkv` [rows, (heads + 2 kv_heads) * head_width] holds queries, keys and values of all heads.
        """

    def attend(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """`keep`, and context [rows, heads * head_width] of rows of one position of a request each."""

    def attend_tiles(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """`keep`, and context of rows that come in tiles of `TILE`.

        Rows of a tile are consecutive positions of one request, or after them padding.
        """

    def draw(self, logits: Tensor, slots: Tensor, state: Tensor, drawn: Tensor) -> None:
        """Draws a token for each row into `drawn` [rows], stop ids included, and advances the slots' state."""


class TorchOps:
    """`LLMOps` on any device, in plain torch."""

    def __init__(self, model: SpeechLM, cache: KVCache) -> None:
        self._model = model
        self._config = model.config
        self._cache = cache
        self._rotary = model.rotary_table(cache.max_length)

    def embed(self, state: Tensor, slots: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return table[state[slots, llm_state.INPUT]], state[slots, llm_state.POSITION]

    def norm_linear(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        return F.linear(self._normed(x, norm), linear.weight, linear.bias)

    def norm_gate(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        gate, up = F.linear(self._normed(x, norm), linear.weight).chunk(2, -1)
        return F.silu(gate) * up

    def add_linear(self, x: Tensor, y: Tensor, linear: nn.Linear) -> None:
        x += F.linear(y, linear.weight)

    def keep(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> None:
        config = self._config
        key, value = qkv.view(len(qkv), -1, config.head_width)[:, config.heads :].chunk(2, 1)
        self._cache.keys[layer, slots, :, positions] = self._turned(key, positions)
        self._cache.values[layer, slots, :, positions] = value

    def attend(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        return self.attend_tiles(layer, qkv, slots, positions)

    def attend_tiles(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        self.keep(layer, qkv, slots, positions)
        heads, kv_heads, width = self._config.heads, self._config.kv_heads, self._config.head_width
        query = self._turned(qkv.view(len(qkv), -1, width)[:, :heads], positions)
        place = torch.arange(self._cache.max_length, device=positions.device)
        context = F.scaled_dot_product_attention(
            query.view(len(slots), kv_heads, -1, width),
            self._cache.keys[layer][slots],
            self._cache.values[layer][slots],
            attn_mask=(place <= positions.unsqueeze(1))[:, None, None, :],
        )
        return context.reshape(len(slots), -1)

    def draw(self, logits: Tensor, slots: Tensor, state: Tensor, drawn: Tensor) -> None:
        rows = state[slots]
        drawn.copy_(llm_state.draw(self._model, logits.float().clone(), rows))
        real = (slots < len(state) - 1).unsqueeze(1)
        state[slots] = torch.where(real, llm_state.after(self._model, rows, drawn), rows)

    def _normed(self, x: Tensor, norm: Tensor) -> Tensor:
        return F.rms_norm(x, norm.shape, norm, self._config.norm_epsilon)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        cosine, sine = self._rotary[:, positions].unsqueeze(2)
        return Rotation(cosine, sine)(x)
