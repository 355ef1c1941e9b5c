"""CosyVoice3's velocity estimator on packed chunks: the numbers of `lighttts.models.dit.DiT`.

Weights are taken from the module: queries, keys and values of a layer are one product, and what depends on the solver's
time alone is computed once for all steps. Rows are (half, block), as `lighttts.engine.flow_ops` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lighttts.engine.flow_ops import FlowOps, GroupedConvolution, Linear
from lighttts.engine.flow_pages import Blocks, PagePool
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.dit import GROUPS, Block, DiT, PositionConv1d


@dataclass(frozen=True)
class _Block:
    """`middle`, `end`: what `FlowOps.modulate` does between attention and feed-forward, and behind the latter."""

    layer: int
    qkv: Linear
    out: Linear
    middle: Tensor
    inner: Linear
    outer: Linear
    end: Tensor


class PackedDiT:
    """`velocity` of any chunks, each at its own solver step, with their pasts in `pool`."""

    def __init__(self, decoder: CausalConditionalCFM[DiT], pool: PagePool, ops: FlowOps) -> None:
        estimator = decoder.estimator
        self._pool, self._ops, self._rotary = pool, ops, estimator.rotary_embed
        embedding = estimator.input_embed
        positions = embedding.conv_pos_embed
        self._positions = [_grouped(cast(PositionConv1d, part[0])) for part in (positions.conv1, positions.conv2)]
        with torch.inference_mode():
            # The module is given the prompt before features and speaker.
            x, prompt, mu, speaker = embedding.proj.weight.chunk(4, dim=1)
            self._into = Linear(torch.cat([x, mu, speaker, prompt], dim=1), embedding.proj.bias)
            self._begin, self._blocks = _blocks(estimator, estimator.time_mlp(decoder.times))
            self._out = _linear(estimator.proj_out)

    def velocity(self, x: Tensor, blocks: Blocks) -> Tensor:
        """(rows, frames, mel) from (rows, frames, 4 mel): the mel so far, features, speaker and prompt side by side."""
        ops, tails = self._ops, self._pool.solver_tails
        halves, frames = x.size(0) // len(blocks.page), x.size(1)
        x = self._into(x)
        first, second = self._positions
        x = ops.place(ops.place(x, tails, first, blocks, None), tails, second, blocks, x)
        starts = (blocks.count - 1) * frames
        turn = self._rotary((starts[:, None] + torch.arange(frames, device=x.device)).repeat(halves, 1), x.dtype)
        normed = ops.modulate(x, None, self._begin, blocks.step)
        for block in self._blocks:
            qkv = block.qkv(normed)
            ops.turn(qkv, turn.cosine, turn.sine)
            mixed = block.out(ops.attend(qkv, self._pool.solver_kv, block.layer, blocks))
            normed = ops.modulate(x, mixed, block.middle, blocks.step)
            fed = block.outer(ops.linear_gelu(normed, block.inner))
            normed = ops.modulate(x, fed, block.end, blocks.step)
        return self._out(normed)


def _blocks(estimator: DiT, embedded: Tensor) -> tuple[Tensor, list[_Block]]:
    """What is done to the input of the first block, and the blocks, each with what is done for the next one."""
    modules = [cast(Block, block) for block in estimator.transformer_blocks]
    times = [[part[:, 0] for part in module.attn_norm(embedded)] for module in modules]
    scale, shift = (part[:, 0] for part in estimator.norm_out(embedded))
    # An input's shift and scale: each block's, and in the end those of the last norm.
    inputs = [(parts[0], parts[1]) for parts in times] + [(shift, scale)]
    blocks = []
    for module, parts, following in zip(modules, times, inputs[1:], strict=True):
        _, _, gate, ff_shift, ff_scale, ff_gate = parts
        middle, end = torch.cat([gate, ff_shift, ff_scale], dim=-1), torch.cat([ff_gate, *following], dim=-1)
        blocks.append(_block(module, middle, end))
    return torch.cat([torch.zeros_like(shift), *inputs[0]], dim=-1), blocks


def _block(module: Block, middle: Tensor, end: Tensor) -> _Block:
    attention, (into, _, outer) = module.attn, module.ff.ff
    parts = (attention.to_q, attention.to_k, attention.to_v)
    qkv = Linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
    assert isinstance(into, torch.nn.Sequential)
    out = _linear(attention.to_out[0])
    return _Block(attention.layer, qkv, out, middle, _linear(into[0]), _linear(outer), end)


def _grouped(module: PositionConv1d) -> GroupedConvolution:
    channels, inputs, taps = module.weight.shape
    weight = module.weight.view(GROUPS, channels // GROUPS, inputs, taps).permute(0, 3, 2, 1).contiguous()
    return GroupedConvolution(weight, module.get_parameter("bias"), module.first)


def _linear(module: object) -> Linear:
    assert isinstance(module, torch.nn.Linear)
    return Linear(module.weight, module.bias)
