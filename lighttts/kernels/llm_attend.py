"""Rotary embedding, the cache and attention of the language model as Triton kernels.

Attention keeps a running maximum and sum over blocks of the cache (Dao et al., "FlashAttention", arXiv:2205.14135).
The query heads that share a key head are rows of one product, so a key is read once for all of them.

`qkv` is [rows, heads + 2 kv_heads, head_width]; `keys` and `values` are a layer's
[slots, kv_heads, length, head_width]; `rotary` is [2, length, head_width], see `lighttts.models.qwen2.rotary_table`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _turned(at, cosine, sine, size, SIZE: tl.constexpr, mask):
    """The heads at pointers `at`, rotated by the angles given at places `size`; rounded as the cache is."""
    value = tl.load(at + size, mask=mask, other=0.0)
    other = tl.load(at + (size + SIZE // 2) % SIZE, mask=mask, other=0.0)
    return (value.to(tl.float32) * cosine + other.to(tl.float32) * sine).to(value.dtype)


@triton.jit
def keep(qkv, keys, values, rotary, slots, positions,
         HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LENGTH: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr,
         D: tl.constexpr):  # fmt: skip
    """Puts the keys, rotated, and the values of each row in their place. Grid: rows."""
    row = tl.program_id(0)
    slot, position = tl.load(slots + row), tl.load(positions + row)
    head, size = tl.arange(0, K)[:, None], tl.arange(0, D)[None]
    inside = (head < KV_HEADS) & (size < SIZE)
    cosine = tl.load(rotary + position * SIZE + size, mask=size < SIZE, other=0.0).to(tl.float32)
    sine = tl.load(rotary + (LENGTH + position) * SIZE + size, mask=size < SIZE, other=0.0).to(tl.float32)
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + HEADS + head) * SIZE
    goal = ((slot * KV_HEADS + head) * LENGTH + position) * SIZE + size
    tl.store(keys + goal, _turned(source, cosine, sine, size, SIZE, inside), mask=inside)
    tl.store(values + goal, tl.load(source + KV_HEADS * SIZE + size, mask=inside), mask=inside)


@triton.jit
def attend(qkv, keys, values, rotary, slots, positions, out,
           SCALE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LENGTH: tl.constexpr, SIZE: tl.constexpr,
           G: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`keep`, and context of each row by its slot up to its position. Grid: rows, kv_heads."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot, position = tl.load(slots + row), tl.load(positions + row)
    member, size = tl.arange(0, G), tl.arange(0, D)
    known = size < SIZE
    cosine = tl.load(rotary + position * SIZE + size, mask=known, other=0.0).to(tl.float32)
    sine = tl.load(rotary + (LENGTH + position) * SIZE + size, mask=known, other=0.0).to(tl.float32)
    mine = qkv + row * (HEADS + 2 * KV_HEADS) * SIZE
    heads = kv_head * GROUP + member[:, None]
    inside = (member[:, None] < GROUP) & known[None]
    query = _turned(mine + heads * SIZE, cosine[None], sine[None], size[None], SIZE, inside)
    key = _turned(mine + (HEADS + kv_head) * SIZE, cosine, sine, size, SIZE, known)
    value = tl.load(mine + (HEADS + KV_HEADS + kv_head) * SIZE + size, mask=known, other=0.0)
    base = (slot * KV_HEADS + kv_head) * LENGTH * SIZE
    tl.store(keys + base + position * SIZE + size, key, mask=known)
    tl.store(values + base + position * SIZE + size, value, mask=known)
    # The row's own position is the first of the running sums: it is not read back from the cache.
    top = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None], 1) * SCALE
    total = tl.full([G], 1.0, tl.float32)
    mixed = tl.zeros([G, D], tl.float32) + value.to(tl.float32)[None]
    for start in range(0, position, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tile = base + place[:, None] * SIZE + size[None]
        real = (place[:, None] < position) & known[None]
        past = tl.load(keys + tile, mask=real, other=0.0)
        score = tl.dot(query, tl.trans(past), input_precision="ieee") * SCALE
        score = tl.where(place[None] < position, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        past = tl.load(values + tile, mask=real, other=0.0)
        mixed = tl.dot(weight.to(past.dtype), past, mixed * shrink[:, None], input_precision="ieee")
        top = higher
    goal = out + (row * HEADS + heads) * SIZE + size[None]
    tl.store(goal, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend_tiles(qkv, keys, values, rotary, slots, positions, out,
                 SCALE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LENGTH: tl.constexpr,
                 SIZE: tl.constexpr, ROWS: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Context of tiles of `ROWS` consecutive positions, which the cache holds already. Grid: tiles, kv_heads."""
    first, kv_head = tl.program_id(0) * ROWS, tl.program_id(1)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot, start = tl.load(slots + first), tl.load(positions + first)
    at, size = tl.arange(0, ROWS * G), tl.arange(0, D)
    step, member = at // G, at % G
    position = start + step
    inside = (member[:, None] < GROUP) & (size[None] < SIZE)
    angle = rotary + tl.minimum(position, LENGTH - 1)[:, None] * SIZE + size[None]
    cosine = tl.load(angle, mask=size[None] < SIZE, other=0.0).to(tl.float32)
    sine = tl.load(angle + LENGTH * SIZE, mask=size[None] < SIZE, other=0.0).to(tl.float32)
    row, head = (first + step)[:, None], kv_head * GROUP + member[:, None]
    query = _turned(qkv + (row * (HEADS + 2 * KV_HEADS) + head) * SIZE, cosine, sine, size[None], SIZE, inside)
    base = (slot * KV_HEADS + kv_head) * LENGTH * SIZE
    end = tl.minimum(start + ROWS, LENGTH)
    top = tl.full([ROWS * G], -float("inf"), tl.float32)
    total = tl.zeros([ROWS * G], tl.float32)
    mixed = tl.zeros([ROWS * G, D], tl.float32)
    for begin in range(0, end, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        tile = base + place[:, None] * SIZE + size[None]
        real = (place[:, None] < end) & (size[None] < SIZE)
        past = tl.load(keys + tile, mask=real, other=0.0)
        score = tl.dot(query, tl.trans(past), input_precision="ieee") * SCALE
        score = tl.where(place[None] <= position[:, None], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        past = tl.load(values + tile, mask=real, other=0.0)
        mixed = tl.dot(weight.to(past.dtype), past, mixed * shrink[:, None], input_precision="ieee")
        top = higher
    goal = out + (row * HEADS + head) * SIZE + size[None]
    tl.store(goal, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)
