"""The velocity estimator on packed chunks: the numbers of `CausalConditionalDecoder`, in half as many operations.

Weights are taken from the module: queries, keys and values of a layer are one product, convolutions are products with
unfolded frames, what depends on the solver's time alone is computed once for all steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lighttts.engine.flow_ops import FlowOps, Linear, Norm
from lighttts.engine.flow_pages import Blocks, PagePool
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.estimator import CausalBlock, CausalConditionalDecoder, ResidualBlock, Stage, TransformerBlock
from lighttts.models.streaming import CausalConv1d


@dataclass(frozen=True)
class _Convolution:
    linear: Linear
    first: int

    @classmethod
    def of(cls, module: CausalConv1d) -> _Convolution:
        return cls(Linear(module.weight.transpose(1, 2).flatten(1).contiguous(), module.bias), module.first)


@dataclass(frozen=True)
class _Residual:
    first: _Convolution
    first_norm: Norm
    times: Tensor
    """(steps, width): what the time adds between the two convolutions."""
    second: _Convolution
    second_norm: Norm
    skip: Linear

    @classmethod
    def of(cls, module: ResidualBlock, embedded: Tensor) -> _Residual:
        first, second = module.block1, module.block2
        skip = module.res_conv
        return cls(
            _Convolution.of(cast(CausalConv1d, first.block["0"])),
            _norm(first.block["2"]),
            module.mlp(embedded),
            _Convolution.of(cast(CausalConv1d, second.block["0"])),
            _norm(second.block["2"]),
            Linear(skip.weight[..., 0].contiguous(), skip.bias),
        )


@dataclass(frozen=True)
class _Transformer:
    """The biases of residual sums are added once, at the stage's end: `before`, `between` and `after` (width,) are
    what they come to at the block's input, before its feed-forward, and at its output."""

    layer: int
    before: Tensor
    norm1: Norm
    qkv: Linear
    out: Tensor
    between: Tensor
    norm3: Norm
    inner: Linear
    outer: Tensor
    after: Tensor

    @classmethod
    def of(cls, module: TransformerBlock, before: Tensor) -> _Transformer:
        attention = module.attn1
        qkv = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
        out, outer = _linear(attention.to_out[0]), _linear(module.ff.net[2])
        assert out.bias is not None
        assert outer.bias is not None
        between = before + out.bias
        return cls(
            attention.layer,
            before,
            _norm(module.norm1),
            Linear(qkv, None),
            out.weight,
            between,
            _norm(module.norm3),
            _linear(module.ff.net[0].proj),
            outer.weight,
            between + outer.bias,
        )


def _norm(module: object) -> Norm:
    assert isinstance(module, torch.nn.LayerNorm)
    return Norm(module.weight, module.bias)


def _linear(module: object) -> Linear:
    assert isinstance(module, torch.nn.Linear)
    return Linear(module.weight, module.bias)


@dataclass(frozen=True)
class _Stage:
    residual: _Residual
    blocks: tuple[_Transformer, ...]
    last: _Convolution | None

    @classmethod
    def of(cls, module: Stage, embedded: Tensor) -> _Stage:
        residual, blocks, *last = module
        assert isinstance(residual, ResidualBlock)
        transformers: list[_Transformer] = []
        offset = torch.zeros_like(embedded[0, : residual.res_conv.out_channels])
        for block in blocks.children():
            transformers.append(_Transformer.of(cast(TransformerBlock, block), offset))
            offset = transformers[-1].after
        convolution = _Convolution.of(cast(CausalConv1d, last[0])) if last else None
        return cls(_Residual.of(residual, embedded), tuple(transformers), convolution)


class PackedEstimator:
    """`velocity` of any chunks, each at its own solver step, with their pasts in `pool`."""

    def __init__(self, decoder: CausalConditionalCFM[CausalConditionalDecoder], pool: PagePool, ops: FlowOps) -> None:
        estimator = decoder.estimator
        self._pool, self._ops = pool, ops
        with torch.inference_mode():
            embedded = estimator.time_mlp(decoder.times)
            stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
            self._stages = [_Stage.of(cast(Stage, stage), embedded) for stage in stages]
            final: CausalBlock = estimator.final_block
            self._final = _Convolution.of(cast(CausalConv1d, final.block["0"]))
            self._final_norm = _norm(final.block["2"])
            self._zero = torch.zeros_like(self._stages[0].residual.times)
            self._out = Linear(estimator.final_proj.weight[..., 0].contiguous(), estimator.final_proj.bias)

    def velocity(self, x: Tensor, blocks: Blocks) -> Tensor:
        """(rows, frames, mel) from (rows, frames, 4 mel): the mel so far, features, speaker and prompt side by side."""
        down, *middle, up = self._stages
        x = self._stage(down, x, blocks)
        skipped = x
        x = self._convolve(down.last, x, blocks)
        for stage in middle:
            x = self._stage(stage, x, blocks)
        x = self._stage(up, torch.cat([x, skipped], dim=-1), blocks)
        x = self._convolve(up.last, x, blocks)
        x = self._convolve(self._final, x, blocks)
        return self._out(self._ops.norm_mish(x, self._final_norm, self._zero, blocks.step))

    def _stage(self, stage: _Stage, x: Tensor, blocks: Blocks) -> Tensor:
        x = self._residual(stage.residual, x, blocks)
        for block in stage.blocks:
            qkv = self._ops.norm_linear(x, block.before, block.norm1, block.qkv)
            self._ops.add_linear(x, self._ops.attend(qkv, self._pool.solver_kv, block.layer, blocks), block.out)
            inner = self._ops.norm_linear(x, block.between, block.norm3, block.inner, gelu=True)
            self._ops.add_linear(x, inner, block.outer)
        return x.add_(stage.blocks[-1].after) if stage.blocks else x

    def _residual(self, residual: _Residual, x: Tensor, blocks: Blocks) -> Tensor:
        hidden = self._convolve(residual.first, x, blocks)
        hidden = self._ops.norm_mish(hidden, residual.first_norm, residual.times, blocks.step)
        hidden = self._convolve(residual.second, hidden, blocks)
        return self._ops.norm_mish(hidden, residual.second_norm, residual.skip(x), None)

    def _convolve(self, convolution: _Convolution | None, x: Tensor, blocks: Blocks) -> Tensor:
        assert convolution is not None
        unfolded = self._ops.unfold(x, self._pool.solver_tails, convolution.first, blocks)
        return convolution.linear(unfolded)
