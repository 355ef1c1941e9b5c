"""Products of few rows with a matrix as Triton kernels, each with what comes before and after it in a layer.

With few rows a decode step is as long as its weights take to read and its kernels take to follow one another; so the
norm before a product, the gate and the sum after it are computed with it. `weight` is [columns, WIDTH] as in
`nn.Linear`. One program has all rows and `BN` columns.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(weight, column, k, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """[BK, BN] of the transposed matrix."""
    inside = (column[None] < COLUMNS) & (k[:, None] < WIDTH)
    return tl.load(weight + column[None] * WIDTH + k[:, None], mask=inside, other=0.0)


@triton.jit
def _scaled(x, norm, row, k, rows, WIDTH: tl.constexpr):
    """[BM, BK] of `x` times the norm's weight, and its squares: the norm divides the product by their mean's root."""
    value = tl.load(x + row[:, None] * WIDTH + k[None], mask=(row[:, None] < rows) & (k[None] < WIDTH), other=0.0)
    scale = tl.load(norm + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    wide = value.to(tl.float32)
    return (wide * scale[None]).to(value.dtype), wide * wide


@triton.jit(do_not_specialize=["rows"])
def norm_linear(x, norm, weight, bias, out, rows,
                EPSILON: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """out = RMS norm of x, times the matrix, plus `bias`."""
    row, column = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    product = tl.zeros([BM, BN], tl.float32)
    squares = tl.zeros([BM, BK], tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        tile = _tile(weight, column, k, COLUMNS, WIDTH)
        part, more = _scaled(x, norm, row, k, rows, WIDTH)
        product = tl.dot(part, tile, product, input_precision="ieee")
        squares += more
    shift = tl.load(bias + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    value = product * tl.rsqrt(tl.sum(squares, 1) / WIDTH + EPSILON)[:, None] + shift[None]
    inside = (row[:, None] < rows) & (column[None] < COLUMNS)
    tl.store(out + row[:, None] * COLUMNS + column[None], value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def norm_gate(x, norm, weight, out, rows,
              EPSILON: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """out = silu(gate) * up of the RMS norm of x; the first `COLUMNS` of 2 * `COLUMNS` of the matrix are the gate's."""
    row, column = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    squares = tl.zeros([BM, BK], tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        gates = _tile(weight, column, k, COLUMNS, WIDTH)
        ups = _tile(weight + COLUMNS * WIDTH, column, k, COLUMNS, WIDTH)
        part, more = _scaled(x, norm, row, k, rows, WIDTH)
        gate = tl.dot(part, gates, gate, input_precision="ieee")
        up = tl.dot(part, ups, up, input_precision="ieee")
        squares += more
    scale = tl.rsqrt(tl.sum(squares, 1) / WIDTH + EPSILON)[:, None]
    gate *= scale
    value = gate / (1.0 + tl.exp(-gate)) * up * scale
    inside = (row[:, None] < rows) & (column[None] < COLUMNS)
    tl.store(out + row[:, None] * COLUMNS + column[None], value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def add_linear(x, y, weight, rows, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
               BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """x += y times the matrix."""
    row, column = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        tile = _tile(weight, column, k, COLUMNS, WIDTH)
        inside = (row[:, None] < rows) & (k[None] < WIDTH)
        part = tl.load(y + row[:, None] * WIDTH + k[None], mask=inside, other=0.0)
        product = tl.dot(part, tile, product, input_precision="ieee")
    inside = (row[:, None] < rows) & (column[None] < COLUMNS)
    goal = x + row[:, None] * COLUMNS + column[None]
    tl.store(goal, (tl.load(goal, mask=inside) + product).to(x.dtype.element_ty), mask=inside)
