"""The estimator's Triton kernels, run by Triton's interpreter, give what the operations in torch give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lighttts.engine.flow_ops import TorchOps
from lighttts.engine.flow_pages import Blocks
from lighttts.kernels.flow import TritonOps

PAGES, STEPS, LAYERS, HALVES, TAIL = 9, 3, 2, 2, 2
BLOCKS = Blocks(
    page=torch.tensor([4, 5, 8]),
    before=torch.tensor([3, 4, 0]),
    table=torch.tensor([[3, 4, 0, 0], [3, 4, 5, 0], [8, 0, 0, 0]]),
    count=torch.tensor([2, 3, 1]),
    length=torch.tensor([6, 6, 5]),
    step=torch.tensor([2, 2, 0]),
    ahead=torch.tensor([0, 1, 0]),
)
"""A request's second and third chunk at the last step, and another's first and only one, not full, at the first."""
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
    qkv = torch.randn(HALVES * 3, FRAMES, 3 * heads * size)
    ours = TritonOps().attend(qkv, mine, 1, BLOCKS)
    assert same(ours, TorchOps().attend(qkv, theirs, 1, BLOCKS))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, kv)


@pytest.mark.parametrize("width", [16, 20, 256])
@pytest.mark.parametrize("more", [True, False])
def test_a_norm_adds_what_is_to_be_added_first(width, more):
    x, weight, bias = torch.randn(5, FRAMES, width), torch.randn(width), torch.randn(width)
    delta = torch.randn_like(x) if more else None
    mine, theirs = x.clone(), x.clone()
    assert same(TritonOps().add_norm(mine, delta, weight, bias), TorchOps().add_norm(theirs, delta, weight, bias))
    assert same(mine, theirs)


def test_gelu_is_the_exact_one_in_place():
    x = torch.linspace(-6, 6, 2003)
    reference = TorchOps().gelu(x.clone())
    assert TritonOps().gelu(x) is x
    assert same(x, reference)


@pytest.mark.parametrize("channels", [16, 20])
def test_frames_unfold_behind_the_chunk_before_in_the_batch_or_in_its_page(channels):
    tails = torch.randn(PAGES, STEPS, HALVES, TAIL, 40)
    mine, theirs = tails.clone(), tails.clone()
    x = torch.randn(HALVES * 3, FRAMES, channels)
    assert same(TritonOps().unfold(x, mine, 7, BLOCKS), TorchOps().unfold(x, theirs, 7, BLOCKS))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, tails)


@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.parametrize("by_step", [True, False])
def test_mish_of_a_norm_and_what_is_added(width, by_step):
    x = 5 * torch.randn(HALVES * 3, FRAMES, width)
    weight, bias = 9 * torch.randn(width), torch.randn(width)
    add, step = (torch.randn(STEPS, width), BLOCKS.step) if by_step else (torch.randn_like(x), None)
    ours = TritonOps().norm_mish(x, weight, bias, add, step)
    assert torch.allclose(ours, TorchOps().norm_mish(x, weight, bias, add, step), atol=1e-4)
