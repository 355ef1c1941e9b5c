"""The diffusion transformer's operations as Triton kernels. Sums and norms are in float32 whatever the dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighttts.engine.flow_ops import MODULATED_EPSILON, GroupedConvolution
from lighttts.engine.flow_pages import Blocks

_ROWS = 2
"""Frames of one program of a norm."""
_TURNED = 4
"""Frames of one program of `_turn`."""


@triton.jit
def _modulate(x, y, joint, step, out, rows, blocks, frames, epsilon,
              ADD: tl.constexpr, WIDTH: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, W)[None]
    inside = (row < rows) & (column < WIDTH)
    place = row * WIDTH + column
    at = tl.load(step + (row // frames) % blocks, mask=row < rows, other=0)
    joints = joint + at * (3 * WIDTH) + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        gate = tl.load(joints, mask=inside, other=0.0).to(tl.float32)
        value += gate * tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + place, value.to(x.dtype.element_ty), mask=inside)
    mean = tl.sum(value, 1)[:, None] / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + epsilon)
    shift = tl.load(joints + WIDTH, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(joints + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (centred / deviation * (1 + scale) + shift).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(qkv, cosine, sine, rows, by_row, WIDTH: tl.constexpr, PAIRS: tl.constexpr, P: tl.constexpr,
          ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, P)[None]
    inside = (row < rows) & (pair < PAIRS)
    angle = row * (2 * PAIRS) + 2 * pair
    cosines = tl.load(cosine + angle, mask=inside, other=0.0).to(tl.float32)
    sines = tl.load(sine + angle, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(2):
        even = qkv + row * by_row + part * WIDTH + 2 * pair
        one = tl.load(even, mask=inside, other=0.0).to(tl.float32)
        two = tl.load(even + 1, mask=inside, other=0.0).to(tl.float32)
        tl.store(even, (one * cosines - two * sines).to(qkv.dtype.element_ty), mask=inside)
        tl.store(even + 1, (two * cosines + one * sines).to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _place(x, tails, weight, bias, add, out, page, before, step, ahead, first, blocks,
           by_page, by_step, by_half, by_tail,
           ADD: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, LED: tl.constexpr,
           F: tl.constexpr, G: tl.constexpr):  # fmt: skip
    """Grid: rows, groups of channels. `weight`: (groups, taps, GROUP inputs, GROUP outputs)."""
    row, group = tl.program_id(0), tl.program_id(1)
    block, half = row % blocks, row // blocks
    frame, index = tl.arange(0, F)[:, None], tl.arange(0, G)
    known = index < GROUP
    channel = group * GROUP + index[None]
    inside = (frame < FRAMES) & known[None]
    led = tl.load(ahead + block + frame * 0) > 0
    kept = tails + tl.load(step + block) * by_step + half * by_half + first + channel
    theirs = kept + tl.load(before + block) * by_page
    own = x + row * FRAMES * CHANNELS + channel
    square = weight + group * (LED + 1) * GROUP * GROUP + index[:, None] * GROUP + index[None]
    sums = tl.zeros([F, G], tl.float32)
    for tap in range(LED + 1):
        source = frame + (tap - LED)
        # The chunk before is in this batch, or has left its last frames in its page.
        near = inside & ((source >= 0) | led)
        value = tl.load(own + source * CHANNELS, mask=near, other=0.0)
        far = inside & (source < 0) & (led == 0)
        value += tl.load(theirs + (source + LED) * by_tail, mask=far, other=0.0)
        taps = tl.load(square + tap * GROUP * GROUP, mask=known[:, None] & known[None], other=0.0)
        sums = tl.dot(value, taps, sums, input_precision="ieee")
    mine = kept + tl.load(page + block) * by_page + (frame - FRAMES + LED) * by_tail
    last = inside & (frame >= FRAMES - LED)
    tl.store(mine, tl.load(own + frame * CHANNELS, mask=last, other=0.0), mask=last)
    sums += tl.load(bias + channel, mask=known[None], other=0.0).to(tl.float32)
    # tanh(log(1 + e^v)) = (n^2 + 2n) / (n^2 + 2n + 2) with n = e^v; beyond 20 that is 1 in float32.
    grown = tl.exp(tl.minimum(sums, 20.0))
    grown = grown * (grown + 2.0)
    sums = sums * (grown / (grown + 2.0))
    cells = (row * FRAMES + frame) * CHANNELS + channel
    if ADD:
        sums += tl.load(add + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + cells, sums.to(out.dtype.element_ty), mask=inside)


def modulate(x: Tensor, y: Tensor | None, joint: Tensor, step: Tensor) -> Tensor:
    """See `lighttts.engine.flow_ops.FlowOps.modulate`."""
    rows, frames, width = x.shape
    out = torch.empty_like(x)
    _modulate[(triton.cdiv(rows * frames, _ROWS),)](
        x, x if y is None else y, joint, step, out, rows * frames, len(step), frames, MODULATED_EPSILON,
        ADD=y is not None, WIDTH=width, W=triton.next_power_of_2(width), ROWS=_ROWS,
    )  # fmt: skip
    return out


def turn(qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """See `lighttts.engine.flow_ops.FlowOps.turn`."""
    rows, pairs = qkv.size(0) * qkv.size(1), cosine.size(-1) // 2
    _turn[(triton.cdiv(rows, _TURNED),)](
        qkv, cosine, sine, rows, qkv.size(2),
        WIDTH=qkv.size(2) // 3, PAIRS=pairs, P=triton.next_power_of_2(pairs), ROWS=_TURNED,
    )  # fmt: skip


def place(x: Tensor, tails: Tensor, convolution: GroupedConvolution, blocks: Blocks, add: Tensor | None) -> Tensor:
    """See `lighttts.engine.flow_ops.FlowOps.place`."""
    rows, frames, channels = x.shape
    groups, taps, group, _ = convolution.weight.shape
    out = torch.empty_like(x)
    _place[(rows, groups)](
        x, tails, convolution.weight, convolution.bias, x if add is None else add, out,
        blocks.page, blocks.before, blocks.step, blocks.ahead, convolution.first, len(blocks.page),
        tails.stride(0), tails.stride(1), tails.stride(2), tails.stride(3),
        ADD=add is not None, FRAMES=frames, CHANNELS=channels, GROUP=group, LED=taps - 1,
        F=max(16, triton.next_power_of_2(frames)), G=max(16, triton.next_power_of_2(group)),
    )  # fmt: skip
    return out
