"""Norms and elementwise operations of the language model as Triton kernels, in float32 whatever the dtype."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed(state, slots, table, x, positions,
          COLUMNS: tl.constexpr, INPUT: tl.constexpr, POSITION: tl.constexpr,
          WIDTH: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """x[row] = table[input of the row's slot], positions[row] = its position. Grid: rows."""
    row = tl.program_id(0)
    mine = state + tl.load(slots + row) * COLUMNS
    column = tl.arange(0, W)
    value = tl.load(table + tl.load(mine + INPUT) * WIDTH + column, mask=column < WIDTH)
    tl.store(x + row * WIDTH + column, value, mask=column < WIDTH)
    tl.store(positions + row, tl.load(mine + POSITION))


@triton.jit
def norm(x, weight, out, EPSILON: tl.constexpr, WIDTH: tl.constexpr, W: tl.constexpr):
    """out[row] = RMS norm of x[row]. Grid: rows."""
    column = tl.arange(0, W)
    inside = column < WIDTH
    place = tl.program_id(0) * WIDTH + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / WIDTH + EPSILON) * scale
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate(both, out, INNER: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = silu(first half of both[row]) * second half. Grid: rows, blocks of `BLOCK` of `INNER`."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < INNER
    gates = tl.load(both + row * 2 * INNER + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * INNER + INNER + column, mask=inside, other=0.0).to(tl.float32)
    value = gates / (1.0 + tl.exp(-gates)) * up
    tl.store(out + row * INNER + column, value.to(out.dtype.element_ty), mask=inside)
