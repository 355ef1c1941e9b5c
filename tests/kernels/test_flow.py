"""The estimator's Triton kernels, run by Triton's interpreter, give what the operations in torch give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_ops import GroupedConvolution, Linear, Norm, TorchOps
from lighttts.engine.flow_pages import RESERVED, Blocks, PagePool
from lighttts.kernels.flow import TritonOps
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow

TINY3 = Path(__file__).parents[1] / "golden" / "cosyvoice3-tiny"

PAGES, STEPS, LAYERS, HALVES, TAIL = 12, 3, 2, 2, 2
BLOCKS = Blocks(
    page=torch.tensor([4, 5, 9, 8, 10]),
    before=torch.tensor([3, 4, 5, 0, 8]),
    table=torch.tensor([[3, 4, 0, 0], [3, 4, 5, 0], [3, 4, 5, 9], [8, 0, 0, 0], [8, 10, 0, 0]]),
    count=torch.tensor([2, 3, 4, 1, 2]),
    length=torch.tensor([6, 6, 6, 6, 5]),
    step=torch.tensor([2, 2, 2, 0, 0]),
    ahead=torch.tensor([0, 1, 2, 0, 1]),
)
"""A request's second to fourth chunk at the last step, and another's first and its last, not full, at the first."""
FRAMES = 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(ours: Tensor, reference: Tensor) -> bool:
    return torch.allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize(("heads", "size"), [(2, 8), (1, 64), (3, 20)])
def test_attention_sees_the_past_and_the_chunk_and_leaves_its_keys_and_values(heads, size):
    kv = torch.randn(PAGES, STEPS, LAYERS, HALVES, 2, heads, FRAMES, size)
    mine, theirs = kv.clone(), kv.clone()
    qkv = torch.randn(HALVES * len(BLOCKS.page), FRAMES, 3 * heads * size)
    ours = TritonOps().attend(qkv, mine, 1, BLOCKS)
    assert same(ours, TorchOps().attend(qkv, theirs, 1, BLOCKS))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, kv)


@pytest.mark.parametrize(("width", "columns"), [(16, 24), (20, 70)])
@pytest.mark.parametrize("gelu", [True, False])
def test_the_norm_of_what_biases_come_to_goes_before_a_product(width, columns, gelu):
    x, offset = 3 + torch.randn(13, FRAMES, width), torch.randn(width)
    norm = Norm(torch.randn(width), torch.randn(width))
    linear = Linear(torch.randn(columns, width), torch.randn(columns) if gelu else None)
    given = x.clone()
    ours = TritonOps().norm_linear(x, offset, norm, linear, gelu=gelu)
    assert torch.allclose(ours, TorchOps().norm_linear(x, offset, norm, linear, gelu=gelu), atol=1e-4)
    assert torch.equal(x, given)


def test_gelu_of_a_product_in_half_precision_is_gelu_up_to_rounding():
    x, linear = (
        torch.randn(13, FRAMES, 16).bfloat16(),
        Linear(torch.randn(24, 16).bfloat16(), torch.randn(24).bfloat16()),
    )
    offset, norm = torch.zeros(16).bfloat16(), Norm(torch.ones(16).bfloat16(), torch.zeros(16).bfloat16())
    ours = TritonOps().norm_linear(x, offset, norm, linear, gelu=True)
    wide = Linear(linear.weight.float(), linear.bias.float() if linear.bias is not None else None)
    exact = TorchOps().norm_linear(
        x.float(), offset.float(), Norm(norm.weight.float(), norm.bias.float()), wide, gelu=True
    )
    assert torch.allclose(ours.float(), exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("width", "columns"), [(16, 24), (300, 70)])
def test_a_product_is_added_in_place(width, columns):
    x, y, weight = torch.randn(13, FRAMES, columns), torch.randn(13, FRAMES, width), torch.randn(columns, width)
    theirs = x.clone()
    TritonOps().add_linear(x, y, weight)
    TorchOps().add_linear(theirs, y, weight)
    assert torch.allclose(x, theirs, atol=1e-4)


@pytest.mark.parametrize("channels", [16, 20])
def test_frames_unfold_behind_the_chunk_before_in_the_batch_or_in_its_page(channels):
    tails = torch.randn(PAGES, STEPS, HALVES, TAIL, 40)
    mine, theirs = tails.clone(), tails.clone()
    x = torch.randn(HALVES * len(BLOCKS.page), FRAMES, channels)
    assert same(TritonOps().unfold(x, mine, 7, BLOCKS), TorchOps().unfold(x, theirs, 7, BLOCKS))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, tails)


@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.parametrize("by_step", [True, False])
def test_mish_of_a_norm_and_what_is_added(width, by_step):
    x = 5 * torch.randn(HALVES * len(BLOCKS.page), FRAMES, width)
    norm = Norm(9 * torch.randn(width), torch.randn(width))
    add, step = (torch.randn(STEPS, width), BLOCKS.step) if by_step else (torch.randn_like(x), None)
    ours = TritonOps().norm_mish(x, norm, add, step)
    assert torch.allclose(ours, TorchOps().norm_mish(x, norm, add, step), atol=1e-4)


@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.parametrize("adds", [True, False])
def test_a_gated_sum_is_made_in_place_and_its_norm_modulated_by_the_step(width, adds):
    x, joint = 3 * torch.randn(HALVES * len(BLOCKS.page), FRAMES, width), torch.randn(STEPS, 3 * width)
    y, given, theirs = (torch.randn_like(x) if adds else None), x.clone(), x.clone()
    ours = TritonOps().modulate(x, y, joint, BLOCKS.step)
    assert torch.allclose(ours, TorchOps().modulate(theirs, y, joint, BLOCKS.step), atol=1e-4)
    assert torch.allclose(x, theirs, atol=1e-5)
    assert torch.equal(x, given) != adds


def test_the_first_features_of_queries_and_keys_turn_in_place():
    qkv, angles = torch.randn(13, FRAMES, 3 * 24), torch.randn(13, FRAMES, 4).repeat_interleave(2, dim=-1)
    given, theirs = qkv.clone(), qkv.clone()
    TritonOps().turn(qkv, angles.cos(), angles.sin())
    TorchOps().turn(theirs, angles.cos(), angles.sin())
    assert same(qkv, theirs)
    assert torch.equal(qkv[..., 8:24], given[..., 8:24])
    assert torch.equal(qkv[..., 32:], given[..., 32:])
    pairs, turned = given[..., :8].unflatten(-1, (4, 2)), qkv[..., :8].unflatten(-1, (4, 2))
    assert torch.allclose(pairs.norm(dim=-1), turned.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("adds", [True, False])
def test_a_grouped_convolution_sees_the_chunk_before_in_the_batch_or_in_its_page(adds):
    groups, inputs, channels = 3, 5, 15
    convolution = GroupedConvolution(torch.randn(groups, TAIL + 1, inputs, inputs) / 3, torch.randn(channels), first=7)
    tails = torch.randn(PAGES, STEPS, HALVES, TAIL, 40)
    mine, theirs = tails.clone(), tails.clone()
    x = torch.randn(HALVES * len(BLOCKS.page), FRAMES, channels)
    add = torch.randn_like(x) if adds else None
    ours = TritonOps().place(x, mine, convolution, BLOCKS, add)
    assert same(ours, TorchOps().place(x, theirs, convolution, BLOCKS, add))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, tails)


class TransformerOps(TritonOps):
    """With torch's convolution: the kernel's many small products would keep the interpreter for minutes."""

    def place(
        self, x: Tensor, tails: Tensor, convolution: GroupedConvolution, blocks: Blocks, add: Tensor | None
    ) -> Tensor:
        return TorchOps().place(x, tails, convolution, blocks, add).contiguous()


def test_a_diffusion_transformer_with_the_kernels_moves_as_one_without():
    """Two steps of a request's two chunks; the second with another request, which does its first."""
    flow = load_flow(ModelDirectory.open(TINY3))
    numbers = np.random.default_rng(5)
    tokens = [numbers.integers(0, 100, count).astype(np.int32) for count in (50, 28)]
    mels = []
    for ops in (TransformerOps(), TorchOps()):
        pool = PagePool(flow, RESERVED + 3)
        batch = FlowBatch(flow, pool, 3, ops)
        with torch.inference_mode():
            state = flow.start(torch.ones(192), torch.zeros(0, 80))
            first = FlowTask([pool.take(), pool.take()], 0, tokens[0], True, state.speaker, state.prompt)
            second = FlowTask([pool.take()], 0, tokens[1], False, state.speaker, state.prompt)
            batch.join([first])
            before = torch.cat([batch.mel(first), flow.decoder.noise[:50]])
            batch.tick([first])
            batch.join([second])
            batch.tick([first, second])
            mels.append(torch.cat([batch.mel(first), batch.mel(second)]) - before)
    assert mels[0].shape == (150, 80)
    assert (mels[0] - mels[1]).abs().max() < 5e-5 * mels[1].std()
