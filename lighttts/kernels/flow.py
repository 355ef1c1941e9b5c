"""The packed estimator's operations as Triton kernels. Sums and norms are in float32 whatever the dtype.

Attention keeps a running maximum and sum over the pages (Dao et al., "FlashAttention", arXiv:2205.14135).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighttts.engine.flow_ops import EPSILON, Linear, Norm
from lighttts.engine.flow_pages import Blocks
from lighttts.kernels.flow_linear import add_linear, erf_gelu, norm_linear

FUSED_ROWS = 800
"""Frames up to which norms and sums are computed with the products next to them: 8 chunks in two halves."""
GROUP = 1
"""Chunks of a hop whose attention one program computes, reading their common past once. A power of two."""
_ROWS = 4
"""Frames of one program of a norm."""
_LED_ROWS = 8
"""Frames of one program of `_unfold`."""
_ELEMENTS = 1024
"""Numbers of one program of an elementwise kernel."""


@triton.jit
def _page_offset(page, step, half, layer, strides_page, strides_step, strides_layer, strides_half):
    return page * strides_page + step * strides_step + layer * strides_layer + half * strides_half


@triton.jit
def _attend(qkv, kv, out, table, count, length, step, ahead, layer, blocks, heads, longest, scale,
            by_page, by_step, by_layer, by_half,
            GROUP: tl.constexpr, FRAMES: tl.constexpr, SIZE: tl.constexpr,
            F: tl.constexpr, D: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    block, half = row % blocks, row // blocks
    place_in_hop = tl.load(ahead + block)
    if place_in_hop % GROUP > 0:
        return  # the program of the chunk before computes this one too
    members = 1
    for other in tl.static_range(1, GROUP):
        follows = tl.load(ahead + block + other, mask=block + other < blocks, other=0) == place_in_hop + other
        members = tl.where(follows, other + 1, members)
    member, frame, size = tl.arange(0, GROUP * F) // F, tl.arange(0, GROUP * F) % F, tl.arange(0, D)
    inside = (frame[:, None] < FRAMES) & (member[:, None] < members) & (size[None] < SIZE)
    width = heads * SIZE
    own = qkv + ((row + member[:, None]) * FRAMES + frame[:, None]) * 3 * width + head * SIZE + size[None]
    query = tl.load(own, mask=inside, other=0.0)
    pages, at = tl.load(count + block), tl.load(step + block)
    last = tl.load(length + block + members - 1)
    pasts = table + (block + members - 1) * longest
    column = tl.arange(0, F)
    tile = (head * FRAMES + column[:, None]) * SIZE + size[None]
    top = tl.full([GROUP * F], -float("inf"), tl.float32)
    total = tl.zeros([GROUP * F], tl.float32)
    mixed = tl.zeros([GROUP * F, D], tl.float32)
    for place in range(pages + members - 1):
        paged = kv + _page_offset(tl.load(pasts + place), at, half, layer, by_page, by_step, by_layer, by_half) + tile
        # What this batch computes is not read from pages, which other programs are writing.
        fresh = qkv + ((row - pages + 1 + place) * FRAMES + column[:, None]) * 3 * width + head * SIZE + size[None]
        known = tl.where(place == pages + members - 2, last, FRAMES)
        real = (column[:, None] < known) & (size[None] < SIZE)
        old = place < pages - 1 - place_in_hop
        keys = tl.load(tl.where(old, paged, fresh + width), mask=real, other=0.0)
        values = tl.load(tl.where(old, paged + width * FRAMES, fresh + 2 * width), mask=real, other=0.0)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        seen = (column[None] < known) & (place < pages + member[:, None])
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        top = higher
    page = tl.load(pasts + pages - 1 + member, mask=member < members, other=0)[:, None]
    left = kv + _page_offset(page, at, half, layer, by_page, by_step, by_layer, by_half)
    left += (head * FRAMES + frame[:, None]) * SIZE + size[None]
    tl.store(left, tl.load(own + width, mask=inside), mask=inside)
    tl.store(left + width * FRAMES, tl.load(own + 2 * width, mask=inside), mask=inside)
    goal = out + ((row + member[:, None]) * FRAMES + frame[:, None]) * width + head * SIZE + size[None]
    tl.store(goal, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm(x, offset, out, weight, bias, rows, epsilon, WIDTH: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, W)[None]
    inside = (row < rows) & (column < WIDTH)
    place = row * WIDTH + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(offset + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    value = tl.where(inside, value, 0.0)
    mean = tl.sum(value, 1)[:, None] / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + epsilon)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + place, (centred / deviation * scale + shift).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_mish(x, add, out, weight, bias, step, rows, blocks, frames, epsilon,
               BY_STEP: tl.constexpr, WIDTH: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, W)[None]
    inside = (row < rows) & (column < WIDTH)
    place = row * WIDTH + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1)[:, None] / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + epsilon)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    normed = centred / deviation * scale + shift
    # tanh(log(1 + e^v)) = (n^2 + 2n) / (n^2 + 2n + 2) with n = e^v; beyond 20 that is 1 in float32.
    grown = tl.exp(tl.minimum(normed, 20.0))
    grown = grown * (grown + 2.0)
    mish = normed * (grown / (grown + 2.0))
    if BY_STEP:
        at = tl.load(step + (row // frames) % blocks, mask=row < rows, other=0)
        more = tl.load(add + at * WIDTH + column, mask=inside, other=0.0)
    else:
        more = tl.load(add + place, mask=inside, other=0.0)
    tl.store(out + place, (mish + more.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
    tl.store(x + place, erf_gelu(value).to(x.dtype.element_ty), mask=place < count)


@triton.jit
def _unfold(x, tails, out, page, before, step, ahead, first, blocks,
            by_page, by_step, by_half, by_tail,
            FRAMES: tl.constexpr, CHANNELS: tl.constexpr, C: tl.constexpr,
            LED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0)
    frame = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    block, half = row % blocks, row // blocks
    channel = tl.arange(0, C)[None]
    inside = (frame < FRAMES) & (channel < CHANNELS)
    at, led = tl.load(step + block), tl.load(ahead + block + frame * 0) > 0
    kept = tails + at * by_step + half * by_half + first + channel
    theirs = kept + tl.load(before + block) * by_page
    lead = x + (row - 1) * FRAMES * CHANNELS + channel
    for tap in tl.static_range(LED + 1):
        source = frame + tap - LED
        value = tl.load(x + (row * FRAMES + source) * CHANNELS + channel, mask=inside & (source >= 0), other=0.0)
        # The chunk before is in this batch, or has left its last frames in its page.
        value += tl.load(lead + (FRAMES + source) * CHANNELS, mask=inside & (source < 0) & led, other=0.0)
        value += tl.load(theirs + (source + LED) * by_tail, mask=inside & (source < 0) & (led == 0), other=0.0)
        tl.store(out + ((row * FRAMES + frame) * (LED + 1) + tap) * CHANNELS + channel, value, mask=inside)
        if tap == LED:
            mine = kept + tl.load(page + block) * by_page + (frame - FRAMES + LED) * by_tail
            tl.store(mine, value, mask=inside & (frame >= FRAMES - LED))


def _power(count: int) -> int:
    """The least block that holds `count` and that a product of tiles takes."""
    return max(16, triton.next_power_of_2(count))


class TritonOps:
    """`FlowOps` on a GPU."""

    any_width = True

    def attend(self, qkv: Tensor, kv: Tensor, layer: int, blocks: Blocks) -> Tensor:
        rows, frames, tripled = qkv.shape
        heads, size = kv.size(5), kv.size(7)
        strides = kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3)
        sizes = {"FRAMES": frames, "SIZE": size, "F": _power(frames), "D": _power(size)}
        count = len(blocks.page)
        out = qkv.new_empty(rows, frames, tripled // 3)
        scale = size**-0.5 * 1.4426950408889634  # exp(x) is 2 ** (x log2 e)
        _attend[(rows, heads)](
            qkv, kv, out, blocks.table, blocks.count, blocks.length, blocks.step, blocks.ahead, layer, count, heads,
            blocks.table.size(1), scale, *strides, **sizes, GROUP=GROUP, num_warps=4 * GROUP, num_stages=2,
        )  # fmt: skip
        return out

    def norm_linear(self, x: Tensor, offset: Tensor, norm: Norm, linear: Linear, *, gelu: bool = False) -> Tensor:
        width, columns = x.size(-1), linear.weight.size(0)
        rows = x.numel() // width
        if rows > FUSED_ROWS:
            out = linear(self._normed(x, offset, norm))
            if gelu:
                _gelu[(triton.cdiv(out.numel(), _ELEMENTS),)](out, out.numel(), BLOCK=_ELEMENTS)
            return out
        out = x.new_empty(*x.shape[:-1], columns)
        norm_linear[(triton.cdiv(rows, 64), triton.cdiv(columns, 64))](
            x, offset, norm.weight, norm.bias, linear.weight, linear.bias, out, rows, EPSILON,
            BIAS=linear.bias is not None, GELU=gelu, COLUMNS=columns, WIDTH=width, BM=64, BN=64, W=_power(width),
        )  # fmt: skip
        return out

    def add_linear(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        columns, width = weight.shape
        rows = y.numel() // width
        if rows > FUSED_ROWS:
            x.view(rows, columns).addmm_(y.view(rows, width), weight.T)
            return
        add_linear[(triton.cdiv(rows, 32), triton.cdiv(columns, 64))](
            x, y, weight, rows, COLUMNS=columns, WIDTH=width, BM=32, BN=64, BK=128, num_stages=3
        )

    def _normed(self, x: Tensor, offset: Tensor, norm: Norm) -> Tensor:
        width = x.size(-1)
        rows = x.numel() // width
        out = torch.empty_like(x)
        _norm[(triton.cdiv(rows, _ROWS),)](
            x, offset, out, norm.weight, norm.bias, rows, EPSILON,
            WIDTH=width, W=triton.next_power_of_2(width), ROWS=_ROWS,
        )  # fmt: skip
        return out

    def unfold(self, x: Tensor, tails: Tensor, first: int, blocks: Blocks) -> Tensor:
        rows, frames, channels = x.shape
        led = tails.size(3)
        out = x.new_empty(rows, frames, (led + 1) * channels)
        _unfold[(rows, triton.cdiv(frames, _LED_ROWS))](
            x, tails, out, blocks.page, blocks.before, blocks.step, blocks.ahead, first, len(blocks.page),
            tails.stride(0), tails.stride(1), tails.stride(2), tails.stride(3),
            FRAMES=frames, CHANNELS=channels, C=triton.next_power_of_2(channels), LED=led, ROWS=_LED_ROWS,
        )  # fmt: skip
        return out

    def norm_mish(self, x: Tensor, norm: Norm, add: Tensor, step: Tensor | None) -> Tensor:
        rows, frames, width = x.shape
        out = torch.empty_like(x)
        blocks = 1 if step is None else len(step)
        _norm_mish[(triton.cdiv(rows * frames, _ROWS),)](
            x, add, out, norm.weight, norm.bias, step, rows * frames, blocks, frames, EPSILON,
            BY_STEP=step is not None, WIDTH=width, W=triton.next_power_of_2(width), ROWS=_ROWS,
        )  # fmt: skip
        return out
