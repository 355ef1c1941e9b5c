"""The packed estimator's operations as Triton kernels. Sums and norms are in float32 whatever the dtype.

Attention keeps a running maximum and sum over the pages (Dao et al., "FlashAttention", arXiv:2205.14135).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.flow_ops import EPSILON, GroupedConvolution, Linear, Norm
from lighttts.engine.flow_pages import Blocks
from lighttts.kernels import flow_dit

_STAGES = 3
"""Tiles of keys and values that a program of attention has on their way or at hand."""
_ROWS = 4
"""Frames of one program of a norm."""
_LED_ROWS = 8
"""Frames of one program of `_unfold`."""


@triton.jit
def _mix(query, keys, values, known, column, scale, top, total, mixed):
    """The running maximum, sum and mixture of values after one more tile, of which the first `known` are real."""
    score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    score = tl.where(column[None] < known, score, -float("inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    weight = tl.exp2(score - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weight, 1)
    mixed = tl.dot(weight.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee")
    return higher, total, mixed


@triton.jit
def _attend(qkv, kv, out, table, count, length, step, ahead, layer, blocks, longest, scale,
            by_page, by_step, by_layer, by_half,
            HEADS: tl.constexpr, FRAMES: tl.constexpr, SIZE: tl.constexpr,
            F: tl.constexpr, D: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    WIDTH: tl.constexpr = HEADS * SIZE
    VALUES: tl.constexpr = HEADS * FRAMES * SIZE
    row, head = tl.program_id(0), tl.program_id(1)
    block, half = row % blocks, row // blocks
    frame, size, column = tl.arange(0, F)[:, None], tl.arange(0, D)[None], tl.arange(0, F)
    inside = (frame < FRAMES) & (size < SIZE)
    own = qkv + (row * FRAMES + frame) * 3 * WIDTH + head * SIZE + size
    query = tl.load(own, mask=inside, other=0.0)
    fresh = tl.load(ahead + block)
    old = tl.load(count + block) - 1 - fresh
    pasts = table + block * longest
    tile = kv + tl.load(step + block) * by_step + layer * by_layer + half * by_half
    tile += (head * FRAMES + frame) * SIZE + size
    top = tl.full([F], -float("inf"), tl.float32)
    total = tl.zeros([F], tl.float32)
    mixed = tl.zeros([F, D], tl.float32)
    for place in tl.range(old, num_stages=STAGES):
        page = tile + tl.load(pasts + place) * by_page
        keys = tl.load(page, mask=inside, other=0.0)
        values = tl.load(page + VALUES, mask=inside, other=0.0)
        top, total, mixed = _mix(query, keys, values, FRAMES, column, scale, top, total, mixed)
    # What this batch computes is not read from pages, which other programs are writing.
    known = tl.load(length + block)
    for place in tl.range(fresh + 1, num_stages=STAGES):
        chunk = own - (fresh - place) * (FRAMES * 3 * WIDTH)
        keys = tl.load(chunk + WIDTH, mask=inside, other=0.0)
        values = tl.load(chunk + 2 * WIDTH, mask=inside, other=0.0)
        real = tl.where(place == fresh, known, FRAMES)
        top, total, mixed = _mix(query, keys, values, real, column, scale, top, total, mixed)
    left = tile + tl.load(pasts + old + fresh) * by_page
    tl.store(left, tl.load(own + WIDTH, mask=inside), mask=inside)
    tl.store(left + VALUES, tl.load(own + 2 * WIDTH, mask=inside), mask=inside)
    goal = out + (row * FRAMES + frame) * WIDTH + head * SIZE + size
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
        out = qkv.new_empty(rows, frames, tripled // 3)
        scale = size**-0.5 * 1.4426950408889634  # exp(x) is 2 ** (x log2 e)
        _attend[(rows, heads)](
            qkv, kv, out, blocks.table, blocks.count, blocks.length, blocks.step, blocks.ahead, layer,
            len(blocks.page), blocks.table.size(1), scale, *strides,
            HEADS=heads, FRAMES=frames, SIZE=size, F=_power(frames), D=_power(size), STAGES=_STAGES,
        )  # fmt: skip
        return out

    def norm_linear(self, x: Tensor, offset: Tensor, norm: Norm, linear: Linear, *, gelu: bool = False) -> Tensor:
        normed = self._normed(x, offset, norm)
        if not gelu:
            return linear(normed)
        if linear.bias is None or x.dtype == torch.float32:
            return F.gelu(linear(normed))
        # GELU as approximated by tanh is nearer to it than half precision is.
        return self.linear_gelu(normed, linear)

    def add_linear(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        columns, width = weight.shape
        x.view(-1, columns).addmm_(y.view(-1, width), weight.T)

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

    def modulate(self, x: Tensor, y: Tensor | None, joint: Tensor, step: Tensor) -> Tensor:
        return flow_dit.modulate(x, y, joint, step)

    def turn(self, qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
        flow_dit.turn(qkv, cosine, sine)

    def place(
        self, x: Tensor, tails: Tensor, convolution: GroupedConvolution, blocks: Blocks, add: Tensor | None
    ) -> Tensor:
        return flow_dit.place(x, tails, convolution, blocks, add)

    def linear_gelu(self, x: Tensor, linear: Linear) -> Tensor:
        if not x.is_cuda or linear.bias is None:
            return F.gelu(linear(x), approximate="tanh")
        # The library's product ends with it.
        product = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.T, use_gelu=True)
        return product.view(*x.shape[:-1], -1)
