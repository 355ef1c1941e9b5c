"""The vocoder's convolutions as one Triton kernel: `lighttts.engine.vocoder_layers.convolve` on a GPU.

An implicit matrix product: a program makes a tile of positions by outputs of one row and plane, and runs over taps and
blocks of inputs, reading the tile's inputs each tap further along the row. Residual, mean, leaky ReLU and the Snakes
that the next layer reads are made before anything is stored, so that a layer reads its input and writes its result once
each. Tiles beyond a row's end are left as they are: whoever reads a row never reads further than its end.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighttts.engine.vocoder_layers import Convolution, Finish, Made, Span, Taps
from lighttts.kernels.vocoder_signal import sine_squared


@triton.jit
def _within(number, pointer):
    """`number` as far as the pointer's type reaches: an infinity in half precision would be the end of the audio."""
    if pointer.dtype.element_ty == tl.float16:
        number = tl.minimum(tl.maximum(number, -65504.0), 65504.0)
    return number


@triton.jit(do_not_specialize=["positions", "beside_positions", "per", "x_more", "more", "slope"])
def _convolve(
    x,
    weight,
    bias,
    taps,
    frames,
    residual,
    beside,
    alphas,
    value,
    snaked,
    x_plane,
    x_row,
    x_position,
    frames_row,
    residual_plane,
    positions,
    beside_positions,
    per,
    x_more,
    more,
    slope,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SUMMED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BESIDE: tl.constexpr,
    SHIFT: tl.constexpr,
    RELU: tl.constexpr,
    KEEP: tl.constexpr,
    SNAKES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Grid: tiles, rows, planes. `taps`: (planes, 4) of first weight, count, dilation, first position."""
    across: tl.constexpr = (OUTPUTS + BLOCK_O - 1) // BLOCK_O
    chunks: tl.constexpr = (INPUTS + BLOCK_I - 1) // BLOCK_I
    tile, row = tl.program_id(0), tl.program_id(1)
    # The last plane's block has the most taps: it goes first.
    plane = tl.num_programs(2) - 1 - tl.program_id(2)
    start = (tile // across) * BLOCK_T
    count = tl.load(frames + row * frames_row).to(tl.int32)
    # Of a row without frames there is nothing, not even what is more.
    end = tl.where(count > 0, count * per + more, 0)
    if start >= end:
        return
    x_end = count * per + x_more
    at = start + tl.arange(0, BLOCK_T)
    output = (tile % across) * BLOCK_O + tl.arange(0, BLOCK_O)
    inputs = tl.arange(0, BLOCK_I)
    rows = tl.num_programs(1)
    stored = (at < end)[:, None] & (output < OUTPUTS)[None, :]
    # What is added comes first: at the end its numbers would need registers of their own.
    sums = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for side in tl.static_range(SUMMED):
        sums += tl.load(bias + (plane + side) * OUTPUTS + output, output < OUTPUTS, other=0)[None, :]
        if RESIDUAL:
            cells = (row * positions + at[:, None]) * OUTPUTS + output[None, :]
            sums += tl.load(residual + (plane + side) * residual_plane + cells, stored, other=0)
    if BESIDE:
        mirrored = tl.abs(at - SHIFT)
        cells = (row * beside_positions + mirrored[:, None]) * OUTPUTS + output[None, :]
        sums += tl.load(beside + cells, stored, other=0)
    for side in tl.static_range(SUMMED):
        shape = taps + 4 * (plane + side)
        begin, number, dilation, first = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2), tl.load(shape + 3)
        origin = x + (plane + side) * x_plane + row * x_row
        for step in range(number * chunks):
            tap = step // chunks
            channel = (step % chunks) * BLOCK_I + inputs
            position = at + first + tap * dilation
            exists = (position >= 0) & (position < x_end)
            entries = weight + ((begin + tap) * INPUTS + channel[:, None]) * OUTPUTS + output[None, :]
            left_entries = origin + position[:, None] * x_position + channel[None, :]
            if INPUTS % BLOCK_I == 0:
                left = tl.load(left_entries, exists[:, None], other=0)
                if OUTPUTS % BLOCK_O == 0:
                    right = tl.load(entries)
                else:
                    right = tl.load(entries, (output < OUTPUTS)[None, :], other=0)
            else:
                known = channel < INPUTS
                left = tl.load(left_entries, exists[:, None] & known[None, :], other=0)
                right = tl.load(entries, known[:, None] & (output < OUTPUTS)[None, :], other=0)
            sums = tl.dot(left, right, sums, input_precision=PRECISION)
    if SUMMED > 1:
        sums = sums / SUMMED
    if RELU:
        sums = tl.where(sums > 0, sums, sums * slope)
    if KEEP:
        cells = ((plane * rows + row) * positions + at[:, None]) * OUTPUTS + output[None, :]
        tl.store(value + cells, _within(sums, value), stored)
    for turn in tl.static_range(SNAKES):
        sheet = plane * SNAKES + turn
        alpha = tl.load(alphas + sheet * OUTPUTS + output, output < OUTPUTS, other=1)[None, :]
        wave = sums + sine_squared(sums * (alpha * 0.3183098861837907)) / (alpha + 1e-9)
        cells = ((sheet * rows + row) * positions + at[:, None]) * OUTPUTS + output[None, :]
        tl.store(snaked + cells, _within(wave, snaked), stored)


@cache
def _table(taps: tuple[Taps, ...], device: torch.device) -> Tensor:
    """(planes, 4): each plane's first weight, number of taps, their dilation, and the first one's position."""
    rows, begin = [], 0
    for plane in taps:
        rows.append((begin, plane.count, plane.dilation, plane.first))
        begin += plane.count
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _blocks(dtype: torch.dtype, inputs: int, outputs: int) -> tuple[int, int, int, int, int]:
    """Tile of positions, outputs and inputs, warps and pipeline stages.

    One tile a layer, whatever the batch: a small batch takes as long as its longest sum does, in tiles of any size, and
    each other tile is a kernel more to be compiled at the first start.
    """
    block_o = min(128 if outputs % 128 == 0 else 64, max(16, triton.next_power_of_2(outputs)))
    if dtype == torch.float32:
        return 64, min(64, block_o), 32, 4, 3
    return 128, block_o, 64 if inputs % 64 == 0 else 32, 8, 3 if block_o == 128 else 4


def _room(x: Tensor, finish: Finish, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Where the result goes: over the residual, whose numbers are each read where they are written."""
    residual = finish.residual
    if residual is not None and not finish.total and residual.is_contiguous() and residual.dtype == dtype:
        return residual
    return x.new_empty(shape, dtype=dtype)


def convolve(
    x: Tensor, layer: Convolution, frames: Tensor, span: Span, positions: int, finish: Finish, *, tf32: bool = True
) -> Made:
    """As `lighttts.engine.vocoder_layers.convolve`, but what lies beyond a row's end is whatever was there.

    `x` (planes, rows, positions, inputs) has channels side by side, and is as `span` says: zeros follow, which need not
    be there, but for a `x` of more positions than are made, whose last one is read. The result may take the residual's
    place.
    """
    planes, rows, inputs, outputs = len(layer.taps), x.size(1), x.size(3), layer.weight.size(2)
    made = 1 if finish.total else planes
    snakes = 0 if finish.alphas is None else finish.alphas.size(0) // made
    shape = (rows, positions, outputs)
    value = None if finish.dtype is None else _room(x, finish, (made, *shape), finish.dtype)
    snaked = None if finish.alphas is None else x.new_empty(made * snakes, *shape)
    block_t, block_o, block_i, warps, stages = _blocks(x.dtype, inputs, outputs)
    grid = (triton.cdiv(positions, block_t) * triton.cdiv(outputs, block_o), rows, made)
    _convolve[grid](
        x,
        layer.weight,
        layer.bias,
        _table(layer.taps, x.device),
        frames,
        x if finish.residual is None else finish.residual,
        x if finish.beside is None else finish.beside,
        layer.bias if finish.alphas is None else finish.alphas,
        x if value is None else value,
        x if snaked is None else snaked,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        frames.stride(0),
        0 if finish.residual is None else finish.residual.stride(0),
        positions,
        0 if finish.beside is None else finish.beside.size(2),
        span.per,
        span.more + max(0, x.size(2) - positions),
        span.more,
        0.0 if finish.slope is None else finish.slope,
        INPUTS=inputs,
        OUTPUTS=outputs,
        SUMMED=planes if finish.total else 1,
        RESIDUAL=finish.residual is not None,
        BESIDE=finish.beside is not None,
        SHIFT=finish.shift,
        RELU=finish.slope is not None,
        KEEP=value is not None,
        SNAKES=snakes,
        PRECISION="tf32" if tf32 else "ieee",
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_I=block_i,
        num_warps=warps,
        num_stages=stages,
    )
    return Made(value, snaked)
