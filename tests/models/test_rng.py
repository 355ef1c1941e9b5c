"""Counter-based random numbers: what each number depends on, and that the numbers are good enough to sound random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.models.rng import Stream, normal, uniform

torch.set_num_threads(1)

MASK = (1 << 64) - 1
INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
DRAWS = 1 << 17


def split_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_bits(seed: int, counter: int, stream: int) -> int:
    key = split_mix((split_mix((seed + 0x9E3779B97F4A7C15) & MASK) + (stream + 1) * 0xD1B54A32D192ED03) & MASK)
    return split_mix((counter * 0x9E3779B97F4A7C15 + key) & MASK)


def numbers(seed: int, stream: int, *, draw=uniform) -> torch.Tensor:
    return draw(torch.tensor([seed]), torch.arange(DRAWS), stream)


@settings(deadline=None)
@given(seed=INT64, counter=INT64, stream=st.integers(0, 9))
def test_uniform_is_the_top_bits_of_split_mix_64(seed: int, counter: int, stream: int) -> None:
    expected = ((reference_bits(seed, counter, stream) >> 41) + 0.5) / 2**23
    assert uniform(torch.tensor(seed), torch.tensor(counter), stream).item() == expected


@settings(deadline=None)
@given(seed=INT64, counter=INT64, stream=st.integers(0, 9))
def test_normal_is_box_muller_over_the_top_and_low_bits(seed: int, counter: int, stream: int) -> None:
    bits = reference_bits(seed, counter, stream)
    radius = math.sqrt(-2 * math.log(((bits >> 41) + 0.5) / 2**23))
    expected = radius * math.cos(2 * math.pi * ((bits & 0x7FFFFF) + 0.5) / 2**23)
    assert normal(torch.tensor(seed), torch.tensor(counter), stream).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seeds=st.lists(INT64, min_size=1, max_size=5),
    counters=st.lists(INT64, min_size=1, max_size=50),
    draw=st.sampled_from([uniform, normal]),
)
def test_a_number_does_not_depend_on_what_is_drawn_beside_it(seeds, counters, draw) -> None:
    seed, counter = torch.tensor(seeds).unsqueeze(1), torch.tensor(counters)
    together = draw(seed, counter, Stream.NUCLEUS)
    assert together.shape == (len(seeds), len(counters))
    alone = [[draw(torch.tensor(s), torch.tensor(c), Stream.NUCLEUS).item() for c in counters] for s in seeds]
    torch.testing.assert_close(together, torch.tensor(alone), rtol=1e-6, atol=1e-6)


def test_arguments_are_left_as_they_were() -> None:
    seed, counter = torch.tensor([7]), torch.arange(5)
    uniform(seed, counter, 0)
    normal(seed, counter, 0)
    assert seed.tolist() == [7]
    assert counter.tolist() == [0, 1, 2, 3, 4]


def test_uniform_numbers_stay_inside_the_open_interval() -> None:
    drawn = uniform(torch.arange(16).unsqueeze(1), torch.arange(1 << 18), 0)
    assert drawn.dtype == torch.float32
    assert drawn.min() > 0
    assert drawn.max() < 1


@pytest.mark.parametrize("seed", [0, 1, -1, 123456789])
def test_uniform_numbers_fill_bins_evenly(seed: int) -> None:
    bins = 256
    counts = torch.histc(numbers(seed, 0), bins, 0, 1)
    chi_square = ((counts - DRAWS / bins) ** 2 / (DRAWS / bins)).sum().item()
    assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("seed", [0, 1, -1, 123456789])
def test_normal_numbers_have_the_moments_and_tails_of_a_standard_normal(seed: int) -> None:
    drawn = numbers(seed, 0, draw=normal).double()
    error = 5 / math.sqrt(DRAWS)
    assert abs(drawn.mean()) < error
    assert abs(drawn.var() - 1) < error * math.sqrt(2)
    assert abs((drawn**4).mean() - 3) < error * math.sqrt(96)
    assert abs((drawn.abs() > 1.959964).double().mean() - 0.05) < error * math.sqrt(0.05)


@pytest.mark.parametrize("draw", [uniform, normal])
@pytest.mark.parametrize(
    ("first", "second"), [((0, 0), (0, 1)), ((5, 2), (5, 3)), ((0, 0), (1, 0)), ((7, 1), (-7, 1)), ((0, 1), (1, 0))]
)
def test_streams_and_seeds_do_not_correlate_at_any_short_lag(draw, first, second) -> None:
    a, b = (numbers(*name, draw=draw).double() for name in (first, second))
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    for lag in range(-3, 4):
        assert abs((a * b.roll(lag)).mean()) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neighbouring_counters_do_not_correlate(draw) -> None:
    a = numbers(42, 0, draw=draw).double()
    a = (a - a.mean()) / a.std()
    for lag in (1, 2, 3, 9, 480):
        assert abs((a * a.roll(lag)).mean()) < 5 / math.sqrt(DRAWS)


def test_purposes_have_streams_of_their_own() -> None:
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)
