"""What the packed estimator does besides products with matrices: in torch, and on a GPU in Triton's kernels.

Rows are (half, block): row `half * blocks + i` is version `half` of block `i`. Frames lie flat, (rows x frames,
features). What is written in place is said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.flow_pages import Blocks

EPSILON = 1e-5
"""Of every layer norm in CosyVoice2's estimator."""
MODULATED_EPSILON = 1e-6
"""Of every layer norm in CosyVoice3's."""


@dataclass(frozen=True)
class Linear:
    """`weight`: (columns, width); `bias`: (columns,)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class GroupedConvolution:
    """A causal convolution of each group of channels: `weight` (groups, taps, inputs, outputs), `bias` (channels,).

    `first`: of the channels of `PagePool.solver_tails` that it finds its last frames in.
    """

    weight: Tensor
    bias: Tensor
    first: int


@dataclass(frozen=True)
class Norm:
    """Parameters of a layer norm, both (width,)."""

    weight: Tensor
    bias: Tensor


class FlowOps(Protocol):
    any_width: bool
    """Whether attention takes as long as the pasts are, however wide `Blocks.table` is."""

    def attend(self, qkv: Tensor, kv: Tensor, layer: int, blocks: Blocks) -> Tensor:
        """Attention of each block's frames to all of its request up to its chunk's end.

        `qkv`: (rows, frames, 3 width), queries, keys, values; `kv`: `PagePool.solver_kv`, which gets this block's keys
        and values in place. (rows, frames, width).
        """

    def norm_linear(self, x: Tensor, offset: Tensor, norm: Norm, linear: Linear, *, gelu: bool = False) -> Tensor:
        """`linear` of the layer norm of `x + offset`, and GELU of that if wanted. `offset`: (width,)."""

    def add_linear(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Adds the product of `y` (..., width) with `weight` (columns, width) to `x` (..., columns) in place."""

    def unfold(self, x: Tensor, tails: Tensor, first: int, blocks: Blocks) -> Tensor:
        """Each frame behind those before it, as `convolve` multiplies: (rows, frames, taps x channels).

        `tails`: `PagePool.solver_tails`, whose channels from `first` on get this block's last frames in place.
        """

    def norm_mish(self, x: Tensor, norm: Norm, add: Tensor, step: Tensor | None) -> Tensor:
        """Mish of the layer norm of `x` (rows, frames, width), and `add` to it.

        With `step` (blocks,), `add` (steps, width) is one vector a solver step; else it is of the shape of `x`.
        """

    # ---- of CosyVoice3's estimator --------------------------------------------------------------------------------

    def modulate(self, x: Tensor, y: Tensor | None, joint: Tensor, step: Tensor) -> Tensor:
        """Adds gate x `y` to `x` (rows, frames, width) in place; returns shift + (1 + scale) x the layer norm of that.

        `joint` (steps, 3 width): gate, shift and scale side by side, for each solver step; `step` (blocks,).
        """

    def turn(self, qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
        """Turns the first features of queries and keys in `qkv` (rows, frames, 3 width) in place, pair by pair.

        `cosine`, `sine`: (rows, frames, features), equal within a pair. See `lighttts.models.dit.Turn`.
        """

    def place(
        self, x: Tensor, tails: Tensor, convolution: GroupedConvolution, blocks: Blocks, add: Tensor | None
    ) -> Tensor:
        """Mish of the convolution of `x` (rows, frames, channels) behind the chunks before, and `add` to it.

        `tails`: `PagePool.solver_tails`, which gets this block's last frames in place.
        """

    def linear_gelu(self, x: Tensor, linear: Linear) -> Tensor:
        """GELU, as approximated by tanh, of `linear` of `x`."""


def lead(x: Tensor, tails: Tensor, first: int, blocks: Blocks) -> Tensor:
    """`x` (rows, frames, channels) behind the last frames of the chunk before: (rows, tail + frames, channels).

    `tails`: `PagePool.solver_tails`, whose channels from `first` on get this block's last frames in place. All are
    written before any is read, so that the chunk before may be in the same batch.
    """
    halves, tail = tails.shape[2:4]
    here = slice(first, first + x.size(-1))
    by_half = x.view(halves, -1, *x.shape[1:])
    tails[blocks.page, blocks.step, :, :, here] = by_half[:, :, -tail:].transpose(0, 1)
    before = tails[blocks.before, blocks.step, :, :, here].transpose(0, 1).flatten(0, 1)
    return torch.cat([before, x], dim=1)


class TorchOps:
    """In torch, for the CPU."""

    any_width = False

    def attend(self, qkv: Tensor, kv: Tensor, layer: int, blocks: Blocks) -> Tensor:
        halves, heads, frames, size = kv.size(3), kv.size(5), kv.size(6), kv.size(7)
        longest = blocks.table.size(1)
        split = qkv.view(halves, -1, frames, 3, heads, size).permute(3, 1, 0, 4, 2, 5)
        kv[blocks.page, blocks.step, layer] = torch.stack([split[1], split[2]], dim=2)
        past = kv[blocks.table, blocks.step[:, None], layer].permute(3, 0, 2, 4, 1, 5, 6).flatten(4, 5)
        place = torch.arange(longest * frames, device=qkv.device)
        mask = place < ((blocks.count - 1) * frames + blocks.length)[:, None]
        context = F.scaled_dot_product_attention(split[0], past[0], past[1], attn_mask=mask[:, None, None, None])
        return context.permute(1, 0, 3, 2, 4).reshape(qkv.size(0), frames, -1)

    def norm_linear(self, x: Tensor, offset: Tensor, norm: Norm, linear: Linear, *, gelu: bool = False) -> Tensor:
        product = linear(F.layer_norm(x + offset, norm.weight.shape, norm.weight, norm.bias, EPSILON))
        return F.gelu(product) if gelu else product

    def add_linear(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        x += F.linear(y, weight)

    def unfold(self, x: Tensor, tails: Tensor, first: int, blocks: Blocks) -> Tensor:
        frames, led = x.size(1), lead(x, tails, first, blocks)
        return torch.cat([led[:, tap : tap + frames] for tap in range(tails.size(3) + 1)], dim=-1)

    def norm_mish(self, x: Tensor, norm: Norm, add: Tensor, step: Tensor | None) -> Tensor:
        normed = F.mish(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, EPSILON))
        if step is None:
            return normed + add
        return normed + add[step].repeat(x.size(0) // len(step), 1)[:, None]

    def modulate(self, x: Tensor, y: Tensor | None, joint: Tensor, step: Tensor) -> Tensor:
        halves = x.size(0) // len(step)
        gate, shift, scale = joint[step].repeat(halves, 1)[:, None].chunk(3, dim=-1)
        if y is not None:
            x += gate * y
        return F.layer_norm(x, x.shape[-1:], eps=MODULATED_EPSILON) * (1 + scale) + shift

    def turn(self, qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
        for part in qkv.chunk(3, dim=-1)[:2]:
            first = part[..., : cosine.size(-1)]
            swapped = torch.stack([-first[..., 1::2], first[..., ::2]], dim=-1).flatten(-2)
            first.copy_(first * cosine + swapped * sine)

    def place(
        self, x: Tensor, tails: Tensor, convolution: GroupedConvolution, blocks: Blocks, add: Tensor | None
    ) -> Tensor:
        groups, taps, inputs, outputs = convolution.weight.shape
        weight = convolution.weight.permute(0, 3, 2, 1).reshape(groups * outputs, inputs, taps)
        led = lead(x, tails, convolution.first, blocks).transpose(1, 2)
        placed = F.mish(F.conv1d(led, weight, convolution.bias, groups=groups).transpose(1, 2))
        return placed if add is None else placed + add

    def linear_gelu(self, x: Tensor, linear: Linear) -> Tensor:
        return F.gelu(linear(x), approximate="tanh")
