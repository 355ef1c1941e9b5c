"""The estimator's products as Triton kernels, each with the norm before it, or with what is done to its result.

Worth it where a tick is as long as its kernels take to follow one another. `weight` is (columns, width), as in
`nn.Linear`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def erf_gelu(value):
    """The exact GELU of float32."""
    return value * 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))


@triton.jit
def norm_linear(x, offset, norm, shift, weight, bias, out, rows, epsilon,
                BIAS: tl.constexpr, GELU: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """out = layer norm of x + offset, times the matrix, and GELU of it if wanted. Grid: blocks of rows, of columns."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, W)
    inside = (row < rows) & (k[None] < WIDTH)
    value = tl.load(x + row * WIDTH + k[None], mask=inside, other=0.0).to(tl.float32)
    value += tl.load(offset + k, mask=k < WIDTH, other=0.0).to(tl.float32)[None]
    value = tl.where(inside, value, 0.0)
    mean = tl.sum(value, 1)[:, None] / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + epsilon)
    scale = tl.load(norm + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    moved = tl.load(shift + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    normed = (centred / deviation * scale[None] + moved[None]).to(weight.dtype.element_ty)
    tile = tl.load(
        weight + column[None] * WIDTH + k[:, None], mask=(column[None] < COLUMNS) & (k[:, None] < WIDTH), other=0.0
    )
    product = tl.dot(normed, tile, input_precision="ieee")
    if BIAS:
        product += tl.load(bias + column, mask=column < COLUMNS, other=0.0).to(tl.float32)[None]
    if GELU:
        product = erf_gelu(product)
    goal = out + row * COLUMNS + column[None]
    tl.store(goal, product.to(out.dtype.element_ty), mask=(row < rows) & (column[None] < COLUMNS))


@triton.jit
def add_linear(x, y, weight, rows,
               COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
               BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """x += y times the matrix. Grid: blocks of rows, of columns."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(y + row * WIDTH + k[None], mask=(row < rows) & (k[None] < WIDTH), other=0.0)
        tile = tl.load(
            weight + column[None] * WIDTH + k[:, None], mask=(column[None] < COLUMNS) & (k[:, None] < WIDTH), other=0.0
        )
        product = tl.dot(part, tile, product, input_precision="ieee")
    inside = (row < rows) & (column[None] < COLUMNS)
    goal = x + row * COLUMNS + column[None]
    value = tl.load(goal, mask=inside, other=0.0).to(tl.float32) + product
    tl.store(goal, value.to(x.dtype.element_ty), mask=inside)
