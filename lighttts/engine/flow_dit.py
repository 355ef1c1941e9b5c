"""CosyVoice3's velocity estimator on packed chunks: the numbers of `lighttts.models.dit.DiT`.

Weights are taken from the module: queries, keys and values of a layer are one product, and what depends on the solver's
time alone is computed once for all steps. Rows are (half, block), as `lighttts.engine.flow_ops` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.flow_ops import FlowOps, Linear, lead
from lighttts.engine.flow_pages import Blocks, PagePool
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.dit import Block, DiT, Modulation, PositionConv1d, Turn, modulated


@dataclass(frozen=True)
class _Block:
    """`times`: (steps, 1, 6 width), what the time embedding gives."""

    times: Tensor
    layer: int
    qkv: Linear
    out: Linear
    inner: Linear
    outer: Linear

    @classmethod
    def of(cls, module: Block, embedded: Tensor) -> _Block:
        attention, (into, _, outer) = module.attn, module.ff.ff
        parts = (attention.to_q, attention.to_k, attention.to_v)
        qkv = Linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        assert isinstance(into, torch.nn.Sequential)
        inner = _linear(into[0])
        return cls(_times(module.attn_norm, embedded), attention.layer, qkv, _linear(attention.to_out[0]), inner,
                   _linear(outer))  # fmt: skip


def _times(modulation: Modulation, embedded: Tensor) -> Tensor:
    return torch.cat(modulation(embedded), dim=-1)


def _linear(module: object) -> Linear:
    assert isinstance(module, torch.nn.Linear)
    return Linear(module.weight, module.bias)


class PackedDiT:
    """`velocity` of any chunks, each at its own solver step, with their pasts in `pool`."""

    def __init__(self, decoder: CausalConditionalCFM[DiT], pool: PagePool, ops: FlowOps) -> None:
        estimator = decoder.estimator
        self._pool, self._ops, self._rotary = pool, ops, estimator.rotary_embed
        embedding = estimator.input_embed
        positions = embedding.conv_pos_embed
        self._positions = [cast(PositionConv1d, part[0]) for part in (positions.conv1, positions.conv2)]
        with torch.inference_mode():
            embedded = estimator.time_mlp(decoder.times)
            # The module is given the prompt before features and speaker.
            x, prompt, mu, speaker = embedding.proj.weight.chunk(4, dim=1)
            self._into = Linear(torch.cat([x, mu, speaker, prompt], dim=1), embedding.proj.bias)
            self._blocks = [_Block.of(cast(Block, block), embedded) for block in estimator.transformer_blocks]
            self._last = _times(estimator.norm_out, embedded)
            self._out = _linear(estimator.proj_out)

    def velocity(self, x: Tensor, blocks: Blocks) -> Tensor:
        """(rows, frames, mel) from (rows, frames, 4 mel): the mel so far, features, speaker and prompt side by side."""
        halves, frames = x.size(0) // len(blocks.page), x.size(1)
        x = self._into(x)
        placed = x
        for convolution in self._positions:
            led = lead(placed, self._pool.solver_tails, convolution.first, blocks)
            placed = F.mish(convolution.convolve(led))
        x = x + placed
        starts = (blocks.count - 1) * frames
        turn = self._rotary((starts[:, None] + torch.arange(frames, device=x.device)).repeat(halves, 1), x.dtype)
        steps = blocks.step.repeat(halves)
        for block in self._blocks:
            x = self._block(block, x, steps, turn, blocks)
        scale, shift = self._last[steps].chunk(2, dim=-1)
        return self._out(modulated(x, shift, scale))

    def _block(self, block: _Block, x: Tensor, steps: Tensor, turn: Turn, blocks: Blocks) -> Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = block.times[steps].chunk(6, dim=-1)
        query, key, value = block.qkv(modulated(x, shift, scale)).chunk(3, dim=-1)
        qkv = torch.cat([turn(query), turn(key), value], dim=-1)
        x = x + gate * block.out(self._ops.attend(qkv, self._pool.solver_kv, block.layer, blocks))
        inner = F.gelu(block.inner(modulated(x, ff_shift, ff_scale)), approximate="tanh")
        return x + ff_gate * block.outer(inner)
