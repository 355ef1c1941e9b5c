"""Keys and values of all requests in preallocated slots, and the two ways positions attend to them on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lighttts.models.qwen2 import CausalAttend, Qwen2Config


class KVCache:
    """`keys` and `values` [layers, slots, kv_heads, max_length, head_width]; a slot belongs to one request at a time.

    Zeroed once: what a former request left behind a slot's length is finite, so a mask excludes it exactly.
    """

    def __init__(
        self, config: Qwen2Config, slots: int, max_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._shape = (config.layers, slots, config.kv_heads, max_length, config.head_width)
        self.keys = _zeros(self._shape, device, dtype)
        self.values = _zeros(self._shape, device, dtype)
        self.max_length = max_length

    def give_back(self) -> None:
        """Returns a CPU's memory to the system, and with it what all slots hold. A GPU's stays reserved."""
        if self.keys.device.type == "cpu":
            self.keys = _zeros(self._shape, self.keys.device, self.keys.dtype)
            self.values = _zeros(self._shape, self.values.device, self.values.dtype)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros which on a CPU take no memory until written: numpy leaves zeroing to the system, torch does not."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class PrefillAttend(CausalAttend):
    """Whole sequences, padded at the end, each of which attends to itself and is kept from position 0 of its slot."""

    def __init__(self, cache: KVCache, slots: Sequence[int]) -> None:
        super().__init__()
        self.cache = cache
        self.slots = slots

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        time = key.shape[2]
        for row, slot in enumerate(self.slots):
            self.cache.keys[layer, slot, :, :time] = key[row]
            self.cache.values[layer, slot, :, :time] = value[row]
        return super().__call__(layer, query, key, value)


class ExtendAttend(CausalAttend):
    """One sequence that goes on from position `start` of its slot, and attends to what is there and to itself."""

    def __init__(self, cache: KVCache, slot: int, start: int) -> None:
        super().__init__()
        self.cache = cache
        self.slot = slot
        self.start = start

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        end = self.start + key.shape[2]
        keys, values = self.cache.keys[layer, self.slot, :, :end], self.cache.values[layer, self.slot, :, :end]
        keys[:, self.start :] = key[0]
        values[:, self.start :] = value[0]
        allowed = torch.ones(key.shape[2], end, dtype=torch.bool).tril(self.start)
        return F.scaled_dot_product_attention(query, keys[None], values[None], attn_mask=allowed, enable_gqa=True)


class RowAttend:
    """One new position a row, each row attending to its slot in a call of its own over exactly its own context.

    The shape of each call depends on the row's own length only, hence so does its result, bit for bit. Rows without a
    slot (padding of the batch) get zeros.
    """

    def __init__(self, cache: KVCache, rows: Sequence[tuple[int, int]]) -> None:
        """`rows` holds the slot and the position of each row that has one, from row 0."""
        self.cache = cache
        self.rows = rows

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        context = torch.zeros_like(query)
        kv_heads, width = key.shape[1], key.shape[3]
        for row, (slot, position) in enumerate(self.rows):
            keys[slot, :, position] = key[row, :, 0]
            values[slot, :, position] = value[row, :, 0]
            # The query heads that share a key head are laid along the time axis: no copy of keys for each of them.
            context[row] = F.scaled_dot_product_attention(
                query[row].view(1, kv_heads, -1, width),
                keys[None, slot, :, : position + 1],
                values[None, slot, :, : position + 1],
            ).view_as(query[row])
        return context
