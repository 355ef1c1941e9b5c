"""The language model's Triton kernels, run by Triton's interpreter, give what the operations in torch give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lighttts.engine import llm, llm_batched, llm_state
from lighttts.engine.kv_cache import KVCache
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.engine.llm_batched import BatchedSteps
from lighttts.engine.llm_ops import TILE, LLMOps, TorchOps
from lighttts.kernels.llm_ops import TritonOps
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import SpeechLM, Vocabulary, load_llm
from lighttts.models.qwen2 import Qwen2Config
from lighttts.models.sampling import Sampling
from tests.talkative import talkative

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS, LENGTH = 5, 150
IDLE = SLOTS
UPSTREAM = Sampling(top_p=0.8, top_k=25, win_size=10, tau_r=0.1)
SHAPES = [(6, 2, 12), (14, 2, 64), (3, 3, 8), (4, 1, 16)]
"""Heads, key heads and head width: 3 or 7 queries a key, and one; widths that are no power of two, or small."""


def model(
    heads: int = 4, kv_heads: int = 2, width: int = 16, speech: int = 100, sampling: Sampling = UPSTREAM
) -> SpeechLM:
    config = Qwen2Config(
        vocabulary=50, width=72, inner=40, layers=2, heads=heads, kv_heads=kv_heads, head_width=width,
        norm_epsilon=1e-6, rope_theta=1e6, init_std=0.5,
    )  # fmt: skip
    return SpeechLM(config, Vocabulary(50, 2, speech, 3, 50, 51, speech, speech + 2), sampling).eval()


class Both:
    """Kernels and torch, each on a cache of its own with the same past in it."""

    def __init__(self, model: SpeechLM) -> None:
        torch.manual_seed(7)
        self.caches = [KVCache(model.config, SLOTS + 1, LENGTH, model.device, model.dtype) for _ in range(2)]
        for ours, theirs in zip(vars(self.caches[0]).values(), vars(self.caches[1]).values(), strict=True):
            if isinstance(ours, Tensor):
                theirs.copy_(ours.normal_())
        self.kernels, self.torch = TritonOps(model, self.caches[0]), TorchOps(model, self.caches[1])

    def caches_agree(self) -> None:
        for kind in ("keys", "values"):
            ours, theirs = (getattr(cache, kind)[:, :IDLE] for cache in self.caches)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
@torch.no_grad()
def test_attention_of_single_positions_sees_each_slot_up_to_its_own(heads: int, kv_heads: int, width: int) -> None:
    both = Both(model(heads, kv_heads, width))
    slots, positions = torch.tensor([3, 0, IDLE, 1, 4, IDLE]), torch.tensor([0, LENGTH - 1, 0, 64, 65, 0])
    qkv = torch.randn(6, (heads + 2 * kv_heads) * width)
    ours, theirs = (ops.attend(1, qkv, slots, positions) for ops in (both.kernels, both.torch))
    torch.testing.assert_close(ours[slots < IDLE], theirs[slots < IDLE], rtol=0, atol=1e-5)
    both.caches_agree()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
@torch.no_grad()
def test_attention_of_tiles_is_causal_and_goes_on_from_what_is_prefilled(heads: int, kv_heads: int, width: int) -> None:
    both = Both(model(heads, kv_heads, width))
    rows: list[tuple[int, int]] = []
    for slot, start, count in [(3, 100, 16), (1, 0, 70), (4, 0, 1), (0, LENGTH - 5, 5), (IDLE, 0, 1)]:
        rows += [(slot, start + at) for at in range(count)] + [(IDLE, 0)] * (-count % TILE)
    slots, positions = torch.tensor(rows).T.contiguous()
    qkv = torch.randn(len(rows), (heads + 2 * kv_heads) * width)
    ours, theirs = (ops.attend_tiles(0, qkv, slots, positions) for ops in (both.kernels, both.torch))
    torch.testing.assert_close(ours[slots < IDLE], theirs[slots < IDLE], rtol=0, atol=1e-5)
    assert ours.isfinite().all()
    both.caches_agree()


MATRICES = [(1, 1, 1), (5, 72, 40), (32, 96, 2100), (33, 64, 96)]
"""Rows, width and columns."""


@pytest.mark.parametrize(("rows", "width", "columns"), MATRICES)
@torch.no_grad()
def test_products_are_those_of_torch_with_the_norm_before_and_the_sum_after(rows, width, columns) -> None:
    both = Both(model())
    x, norm = 3 * torch.randn(rows, width), torch.randn(width)
    linear, gates, back = (
        nn.Linear(width, columns),
        nn.Linear(width, 2 * columns, False),
        nn.Linear(columns, width, False),
    )

    def layer(ops: LLMOps) -> list[Tensor]:
        mine = x.clone()
        gated = ops.norm_gate(mine, norm, gates)
        ops.add_linear(mine, gated, back)
        return [ops.norm_linear(x, norm, linear), gated, mine]

    for ours, theirs in zip(layer(both.kernels), layer(both.torch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def states(model: SpeechLM, history: Tensor, seeds: list[int], steps: list[int]) -> Tensor:
    """State rows of slots that differ in all columns; `history` [slots, window]."""
    rows = len(history)
    inputs = torch.arange(rows) * 3 % 50
    fixed = [inputs, torch.arange(rows), torch.tensor(seeds), torch.tensor(steps), torch.full((rows,), 8)]
    return torch.cat([torch.stack(fixed, 1), history], 1)


def test_inputs_are_those_of_the_slots_named() -> None:
    tiny = model()
    both, table = Both(tiny), tiny.input_table()
    state = states(tiny, torch.full((SLOTS + 1, 10), -1), [0] * 6, [0] * 6)
    slots = torch.tensor([2, IDLE, 0])
    for ours, theirs in zip(*(ops.embed(state, slots, table) for ops in (both.kernels, both.torch)), strict=True):
        assert torch.equal(ours, theirs)


SETTINGS = st.builds(
    Sampling,
    top_p=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    top_k=st.sampled_from([1, 3, 25, 200]),
    win_size=st.sampled_from([1, 4, 10]),
    tau_r=st.sampled_from([0.1, 0.5, 1.0]),
)


@settings(deadline=None, max_examples=15)
@given(SETTINGS, st.integers(1, 120), st.integers(0, 2**31), st.data())
def test_tokens_and_state_after_a_draw_are_those_of_the_reference(sampling, speech, world, data) -> None:
    drawing = model(speech=speech, sampling=sampling)
    both = Both(drawing)
    random = torch.Generator().manual_seed(world)
    logits = torch.randn(4, speech + 3, generator=random) * data.draw(st.sampled_from([0.0, 0.5, 3.0, 20.0]))
    if data.draw(st.booleans()):
        logits = logits.round()  # equal logits, of which the first is the likelier
    likely = logits.topk(min(4, speech), 1).indices
    history = torch.full((SLOTS + 1, sampling.win_size), -1)
    slots = torch.tensor([4, 0, IDLE, 2])
    for row, slot in enumerate(slots):
        count = data.draw(st.integers(0, sampling.win_size))
        history[slot, sampling.win_size - count :] = likely[
            row, torch.randint(likely.shape[1], (count,), generator=random)
        ]
    seeds = [data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(SLOTS + 1)]
    steps = [data.draw(st.integers(0, 5000)) for _ in range(SLOTS + 1)]
    before = states(drawing, history, seeds, steps)
    results = []
    for ops in (both.kernels, both.torch):
        state, drawn = before.clone(), torch.zeros(4, dtype=torch.int64)
        ops.draw(logits, slots, state, drawn)
        results.append((drawn, state))
    (ours, our_state), (theirs, their_state) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(our_state, their_state)
    assert torch.equal(our_state[IDLE], before[IDLE])
    assert torch.equal(
        our_state[4, llm_state.POSITION :][[0, 2]], before[4, llm_state.POSITION :][[0, 2]] + torch.tensor([1, 1])
    )


def test_the_end_of_speech_is_drawn_from_the_minimum_on_only() -> None:
    drawing = model()
    both = Both(drawing)
    logits = torch.zeros(2, 103)
    logits[:, drawing.vocabulary.end_of_speech] = 50.0
    state = states(drawing, torch.full((SLOTS + 1, 10), -1), [5] * 6, [7, 8, 0, 0, 0, 0])
    drawn = torch.zeros(2, dtype=torch.int64)
    both.kernels.draw(logits, torch.tensor([0, 1]), state, drawn)
    assert drawn[0] < drawing.vocabulary.speech
    assert drawn[1] == drawing.vocabulary.end_of_speech


def test_tokens_of_a_published_vocabulary_are_those_of_the_reference() -> None:
    drawing = model(speech=6561)
    both = Both(drawing)
    logits = 2 * torch.randn(SLOTS, 6564)
    history = logits.topk(25, 1).indices[:, torch.randperm(25)[:10]]  # what is drawn is repeated as often as not
    before = states(drawing, torch.cat([history, history[:1]]), [*range(90, 96)], [*range(6)])
    drawn = [torch.zeros(SLOTS, dtype=torch.int64) for _ in range(2)]
    for ops, ids in zip((both.kernels, both.torch), drawn, strict=True):
        ops.draw(logits, torch.arange(SLOTS), before.clone(), ids)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("version", [2, 3])
def test_an_engine_with_the_kernels_makes_the_tokens_of_one_without(version, tmp_path, monkeypatch) -> None:
    folder = GOLDEN / "cosyvoice2-tiny" if version == 2 else talkative(tmp_path / "model")
    tiny = load_llm(ModelDirectory.open(folder), torch.device("cpu"))
    jobs = [
        GenerateJob(n, np.arange(2 + n, dtype=np.int32), 1, np.arange(3 * n, dtype=np.int32), n, np.zeros(0, np.int32))
        for n in range(2)
    ]

    def run() -> dict[object, list[int]]:
        engine, made = LLMEngine(tiny, slots=2, max_length=14, prefill_tokens=16), {each.key: [] for each in jobs}
        for each in jobs:
            engine.add(each)
        while engine.busy:
            for step in engine.step():
                made[step.key] += step.tokens
        return made

    expected = run()
    monkeypatch.setattr(llm, "_steps", BatchedSteps)
    monkeypatch.setattr(llm_batched, "_ops", TritonOps)
    assert run() == expected
    assert all(expected.values())
