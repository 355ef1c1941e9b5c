"""`lighttts.engine.llm_ops.LLMOps` on a GPU, by the Triton kernels beside this module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from lighttts.engine import llm_state
from lighttts.engine.kv_cache import KVCache
from lighttts.engine.llm_ops import TILE
from lighttts.kernels import llm_attend, llm_draw, llm_layers
from lighttts.models.llm import SpeechLM

_LOG2_E = 1.4426950408889634
"""Attention's weights are powers of 2: exp(x) is 2 ** (x log2 e)."""
_GATE_BLOCK = 1024
_LEAST = 16
"""Least side of a tile in a product."""


def _draw_sizes(model: SpeechLM) -> dict[str, float]:
    """The constants of `llm_draw.draw`."""
    vocabulary, sampling = model.vocabulary, model.sampling
    size = vocabulary.speech + vocabulary.stops
    top_k = min(sampling.top_k, size)
    return {
        "COLUMNS": llm_state.columns(model),
        "INPUT": llm_state.INPUT,
        "POSITION": llm_state.POSITION,
        "SEED": llm_state.SEED,
        "STEP": llm_state.STEP,
        "MINIMUM": llm_state.MINIMUM,
        "HISTORY": llm_state.HISTORY,
        "WINDOW": sampling.win_size,
        "W": triton.next_power_of_2(sampling.win_size),
        "VOCABULARY": size,
        "V": triton.next_power_of_2(size),
        "END": vocabulary.end_of_speech,
        "TASK": vocabulary.task,
        "TOP_P": sampling.top_p,
        "TOP_K": top_k,
        "T": triton.next_power_of_2(top_k),
        "REPEATS": sampling.repeats,
    }


class TritonOps:
    def __init__(self, model: SpeechLM, cache: KVCache) -> None:
        config = model.config
        self._epsilon = config.norm_epsilon
        self._cache = cache
        self._rotary = model.rotary_table(cache.max_length)
        self._context = config.heads * config.head_width
        self._kv_heads = config.kv_heads
        self._sizes = {
            "HEADS": config.heads,
            "KV_HEADS": config.kv_heads,
            "LENGTH": cache.max_length,
            "SIZE": config.head_width,
            "D": max(_LEAST, triton.next_power_of_2(config.head_width)),
        }
        self._scale = config.head_width**-0.5 * _LOG2_E
        self._group = triton.next_power_of_2(config.heads // config.kv_heads)
        self.attend_options = {"BLOCK": 128, "num_warps": 4, "num_stages": 3}
        """How `attend` is compiled."""
        self._draw_sizes = _draw_sizes(model)

    def embed(self, state: Tensor, slots: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = len(slots), table.shape[1]
        x, positions = table.new_empty(rows, width), torch.empty_like(slots)
        llm_layers.embed[(rows,)](
            state, slots, table, x, positions,
            COLUMNS=state.shape[1], INPUT=llm_state.INPUT, POSITION=llm_state.POSITION,
            WIDTH=width, W=triton.next_power_of_2(width),
        )  # fmt: skip
        return x, positions

    def norm_linear(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        return F.linear(self._normed(x, norm), linear.weight, linear.bias)

    def norm_gate(self, x: Tensor, norm: Tensor, linear: nn.Linear) -> Tensor:
        both = F.linear(self._normed(x, norm), linear.weight)
        columns = both.size(1) // 2
        out = x.new_empty(len(x), columns)
        llm_layers.gate[(len(x), triton.cdiv(columns, _GATE_BLOCK))](both, out, INNER=columns, BLOCK=_GATE_BLOCK)
        return out

    def add_linear(self, x: Tensor, y: Tensor, linear: nn.Linear) -> None:
        x.addmm_(y, linear.weight.T)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        rows, width = x.shape
        out = torch.empty_like(x)
        llm_layers.norm[(rows,)](x, weight, out, EPSILON=self._epsilon, WIDTH=width, W=triton.next_power_of_2(width))
        return out

    def keep(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> None:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        heads = triton.next_power_of_2(self._kv_heads)
        llm_attend.keep[(len(slots),)](
            qkv, keys, values, self._rotary, slots, positions, **self._sizes, K=heads, num_warps=1
        )

    def attend(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        out = qkv.new_empty(len(slots), self._context)
        llm_attend.attend[(len(slots), self._kv_heads)](
            qkv, keys, values, self._rotary, slots, positions, out,
            SCALE=self._scale, G=max(_LEAST, self._group), **self._sizes, **self.attend_options,
        )  # fmt: skip
        return out

    def attend_tiles(self, layer: int, qkv: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        self.keep(layer, qkv, slots, positions)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        out = qkv.new_empty(len(slots), self._context)
        llm_attend.attend_tiles[(len(slots) // TILE, self._kv_heads)](
            qkv, keys, values, self._rotary, slots, positions, out,
            SCALE=self._scale, ROWS=TILE, G=self._group, BLOCK=64, **self._sizes, num_warps=8, num_stages=2,
        )  # fmt: skip
        return out

    def draw(self, logits: Tensor, slots: Tensor, state: Tensor, drawn: Tensor) -> None:
        idle = len(state) - 1
        llm_draw.draw[(len(slots),)](logits, slots, state, drawn, idle, **self._draw_sizes, num_warps=8)
