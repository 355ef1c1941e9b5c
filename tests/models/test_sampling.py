"""Repetition-aware nucleus sampling, against a plain reading of upstream's `ras_sampling` with the same draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.errors import ModelError
from lighttts.models.rng import Stream, uniform
from lighttts.models.sampling import Sampling, sample
from lighttts.models.section import Section
from lighttts.models.spec import CLASS

torch.set_num_threads(1)

UPSTREAM = Sampling(top_p=0.8, top_k=25, win_size=10, tau_r=0.1)


def pick(weights: list[float], draw: float) -> int:
    """The place at which `draw` falls when the weights are laid end to end over (0, 1)."""
    target, total = draw * math.fsum(weights), 0.0
    for place, weight in enumerate(weights):
        total += weight
        if total > target:
            return place
    return max(place for place, weight in enumerate(weights) if weight)


def reference(logits: torch.Tensor, decoded: list[int], seed: int, step: int, sampling: Sampling) -> int:
    nucleus_draw, full_draw = (
        uniform(torch.tensor(seed), torch.tensor(step), stream).item() for stream in (Stream.NUCLEUS, Stream.REPETITION)
    )
    probability = logits.softmax(0).tolist()
    order = sorted(range(len(probability)), key=lambda token: -probability[token])
    nucleus: list[int] = []
    cumulative = 0.0
    for token in order:
        if not (cumulative < sampling.top_p and len(nucleus) < sampling.top_k):
            break
        cumulative += probability[token]
        nucleus.append(token)
    token = nucleus[pick([probability[token] for token in nucleus], nucleus_draw)]
    if decoded[-sampling.win_size :].count(token) >= sampling.win_size * sampling.tau_r:
        others = logits.clone()
        others[token] = -math.inf
        token = pick(others.softmax(0).tolist(), full_draw)
    return token


def batch(rows: list[tuple[torch.Tensor, list[int], int, int]], sampling: Sampling) -> list[int]:
    history = [([-1] * sampling.win_size + decoded)[-sampling.win_size :] for _, decoded, _, _ in rows]
    drawn = sample(
        torch.stack([logits for logits, *_ in rows]),
        torch.tensor(history),
        torch.tensor([seed for *_, seed, _ in rows]),
        torch.tensor([step for *_, step in rows]),
        sampling,
    )
    assert drawn.dtype == torch.int64
    assert drawn.shape == (len(rows),)
    return drawn.tolist()


SETTINGS = st.builds(
    Sampling,
    top_p=st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([1, 3, 25, 200]),
    win_size=st.sampled_from([1, 4, 10]),
    tau_r=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
)


@settings(deadline=None, max_examples=150)
@given(SETTINGS, st.integers(4, 120), st.integers(1, 6), st.integers(0, 2**31), st.data())
def test_tokens_are_those_of_the_reference(sampling, vocabulary, rows, world, data) -> None:
    random = torch.Generator().manual_seed(world)
    spread = data.draw(st.sampled_from([0.0, 0.5, 3.0, 20.0]))
    items = []
    for _ in range(rows):
        logits = torch.randn(vocabulary, generator=random) * spread
        if data.draw(st.booleans()):
            logits = logits.round()  # equal logits, whose order a stable sort decides
        if data.draw(st.booleans()):
            logits[vocabulary // 2] = -math.inf
        likely = logits.topk(min(4, vocabulary)).indices.tolist()
        decoded = data.draw(st.lists(st.sampled_from(likely), max_size=14))
        items.append((logits, decoded, data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.integers(0, 5000))))
    assert batch(items, sampling) == [reference(*item, sampling) for item in items]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    random = torch.Generator().manual_seed(3)
    rows = [(torch.randn(6564, generator=random) * 3, [row, 2], 100 + row, row) for row in range(7)]
    together = batch(rows, UPSTREAM)
    assert [batch([row], UPSTREAM)[0] for row in rows] == together
    assert batch(rows[::-1], UPSTREAM) == together[::-1]


def many(logits: list[float], decoded: list[int], sampling: Sampling, draws: int = 4000) -> torch.Tensor:
    """How often each token is drawn over `draws` steps of one request, as shares."""
    drawn = batch([(torch.tensor(logits), decoded, 11, step) for step in range(draws)], sampling)
    return torch.bincount(torch.tensor(drawn), minlength=len(logits)) / draws


def test_the_nucleus_ends_with_the_token_that_reaches_top_p() -> None:
    shares = many([math.log(p) for p in (0.5, 0.25, 0.15, 0.1)], [], Sampling(0.75, 25, 10, 0.1))
    assert shares[2:].tolist() == [0, 0]
    assert shares[:2].tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.04)


def test_the_nucleus_has_at_most_top_k_tokens() -> None:
    shares = many([math.log(p) for p in (0.4, 0.3, 0.2, 0.1)], [], Sampling(1.0, 2, 10, 0.1))
    assert shares[2:].tolist() == [0, 0]
    assert shares[:2].tolist() == pytest.approx([4 / 7, 3 / 7], abs=0.04)


def test_a_nucleus_cut_through_equals_takes_those_of_lower_id() -> None:
    assert many([0.0] * 64, [], Sampling(1.0, 5, 10, 0.1))[:5].tolist() == pytest.approx([0.2] * 5, abs=0.03)


def test_a_repeated_token_is_replaced_by_any_other_even_outside_the_nucleus() -> None:
    shares = many([math.log(p) for p in (0.9, 0.05, 0.03, 0.02)], [0], UPSTREAM)
    assert shares.tolist() == pytest.approx([0, 0.5, 0.3, 0.2], abs=0.04)


def test_repetition_counts_within_the_window_only() -> None:
    logits = [math.log(p) for p in (0.97, 0.01, 0.01, 0.01)]
    assert many(logits, [0] + [3] * 10, UPSTREAM)[0] == 1
    assert many(logits, [0] + [3] * 9, UPSTREAM)[0] == 0


@pytest.mark.parametrize(("tau", "occurrences"), [(0.1, 1), (0.25, 3), (0.3, 3), (1.0, 10)])
def test_a_token_is_repeated_from_the_share_of_the_window_on(tau: float, occurrences: int) -> None:
    sampling, logits = Sampling(0.8, 25, 10, tau), [math.log(p) for p in (0.97, 0.01, 0.01, 0.01)]
    assert many(logits, [0] * occurrences, sampling)[0] == 0
    assert many(logits, [0] * (occurrences - 1), sampling)[0] == 1


def test_an_excluded_token_is_never_drawn() -> None:
    assert many([-math.inf, 0.0, 0.0, -math.inf], [1, 2], UPSTREAM)[[0, 3]].tolist() == [0, 0]


def test_probability_below_float_resolution_still_leaves_a_choice_after_repetition() -> None:
    assert many([200.0, 0.0, 0.0], [0], UPSTREAM).tolist() == pytest.approx([0, 0.5, 0.5], abs=0.04)


def test_settings_come_from_the_yaml() -> None:
    content = {CLASS: "cosyvoice.utils.common.ras_sampling", "top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1}
    assert Sampling.read(Section(content, "x.yaml")) == UPSTREAM
    with pytest.raises(ModelError, match="ras_sampling"):
        Sampling.read(Section(content | {CLASS: "other.sampler"}, "x.yaml", "llm.sampling"))
    with pytest.raises(ModelError, match="top_k"):
        Sampling.read(Section(content | {"top_k": 0}, "x.yaml", "llm.sampling"))
