"""The vocoder engine gives each hop what the reference `vocode` gives it, whatever the hops around it.

The pitch is summed up to a phase, so a last bit of it, which a convolution over a longer row may round otherwise, moves
a sample of the audio by a thousandth. Where that would hide an error, the pitch is that of a predictor whose sums are
exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lighttts.engine.vocoder import FIRST, HOPS, Vocoder
from lighttts.engine.vocoder_ops import Passed
from lighttts.models.directory import ModelDirectory
from lighttts.models.hift import HiFTGenerator, load_hift
from lighttts.models.hift_stream import OVERLAP, VocoderHop, VocoderResult, VocoderState, vocode

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"
FRAME = 480
LENGTHS = (FIRST, *(frames + OVERLAP for frames in HOPS))
SEEDS = st.one_of(st.none(), st.integers(0, (1 << 64) - 1))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@cache
def model() -> HiFTGenerator:
    torch.set_num_threads(1)
    return load_hift(ModelDirectory.open(TINY))


@cache
def exact_model() -> HiFTGenerator:
    """The vocoder with a pitch of `coarse` mels whose every sum is exact: short numbers, and ELUs far above zero."""
    exact = load_hift(ModelDirectory.open(TINY))
    first, *others = [layer for layer in exact.f0_predictor.condnet if isinstance(layer, torch.nn.Conv1d)]
    first.weight.copy_((first.weight * 64).round() / 64)
    first.bias.fill_(64.0)
    for layer in others:
        layer.weight.copy_(torch.eye(layer.out_channels)[:, :, None] * torch.tensor([0.0, 1.0, 0.0]))
        layer.bias.zero_()
    classifier = exact.f0_predictor.classifier
    classifier.weight.copy_((torch.randn(classifier.weight.shape) * 8).round() / 16)
    classifier.bias.fill_(150.0 - 64.0 * float(classifier.weight.sum()))
    return exact


@cache
def engine(*, exact: bool = True, max_batch: int = 5) -> Vocoder:
    return Vocoder(exact_model() if exact else model(), max_batch=max_batch)


@cache
def mel() -> Tensor:
    """400 frames of speech, in steps of 1/16."""
    golden = load_file(TINY / "golden.safetensors")["hift.mel"][0].T
    return (golden.repeat(7, 1)[:400] * 16).round() / 16


def drawn_hop(draw: st.DrawFn, longest: int) -> VocoderHop:
    """A first, middle or last hop of any length; what it holds came from the reference."""
    seed, final, begin = draw(SEEDS), draw(st.booleans()), draw(st.integers(0, 100))
    state = None
    if draw(st.booleans()):
        before = draw(st.integers(OVERLAP + 1, 30))
        state = vocode(exact_model(), [VocoderHop(None, mel()[begin : begin + before], False, seed)])[0].state
        begin += before
    frames = draw(st.integers(1 if final else OVERLAP + 1, longest))
    return VocoderHop(state, mel()[begin : begin + frames], final, seed)


@st.composite
def mixes(draw: st.DrawFn) -> list[VocoderHop]:
    return [drawn_hop(draw, 70) for _ in range(draw(st.integers(1, 7)))]


def assert_same(ours: VocoderResult, reference: VocoderResult, tolerance: float = 1e-5) -> None:
    assert ours.audio.dtype == torch.float32
    assert ours.audio.shape == reference.audio.shape
    assert (ours.audio - reference.audio).abs().max() < tolerance
    assert (ours.state is None) == (reference.state is None)
    if ours.state is not None and reference.state is not None:
        assert_same_state(ours.state, reference.state, tolerance)


def assert_same_state(ours: VocoderState, reference: VocoderState, tolerance: float = 1e-5) -> None:
    assert ours.first == reference.first
    assert torch.equal(ours.mel, reference.mel)
    assert ours.phase.dtype == reference.phase.dtype
    for name in ("source", "audio", "phase"):
        one, other = getattr(ours, name), getattr(reference, name)
        assert one.shape == other.shape
        assert (one - other).abs().max() < tolerance, name


@given(mixes())
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_each_hop_of_any_mix_gets_what_the_reference_gives_it(hops):
    for ours, reference in zip(engine().vocode(hops), vocode(exact_model(), hops), strict=True):
        assert_same(ours, reference)


@given(st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_requests_go_on_from_hop_to_hop_as_with_the_reference(middles, seed):
    """Both ways keep states of their own, hop after hop; a second request joins and leaves in between."""
    ours: VocoderState | None = None
    reference: VocoderState | None = None
    begin = 0
    for index, (frames, company) in enumerate(middles):
        final = index == len(middles) - 1
        new = mel()[begin : begin + max(frames, 1 if final else OVERLAP + 1)]
        begin += len(new)
        hops = [VocoderHop(ours, new, final, seed)]
        if company:
            hops.append(VocoderHop(None, mel()[200 : 200 + frames + 40], True, seed + 1))
        (expected,) = vocode(exact_model(), [VocoderHop(reference, new, final, seed)])
        result = engine().vocode(hops)[0]
        assert_same(result, expected)
        ours, reference = result.state, expected.state


@pytest.mark.parametrize("frames", [*LENGTHS, *(length + 1 for length in LENGTHS), 300])
def test_a_hop_may_be_as_long_as_a_bucket_and_longer_than_the_longest(frames):
    hops = [VocoderHop(None, mel()[:frames], False, 4)]
    (ours,), (reference,) = engine().vocode(hops), vocode(exact_model(), hops)
    assert_same(ours, reference)


def test_the_pitch_of_a_padded_row_is_that_of_the_row_alone_to_rounding():
    """With the published predictor, which sees five frames to each side: beyond its end a row is zero, not padding."""
    hops = [VocoderHop(None, mel()[:frames], False, 3) for frames in (60, 31, 45)]
    for ours, reference in zip(engine(exact=False).vocode(hops), vocode(model(), hops), strict=True):
        assert (ours.audio - reference.audio).std() < 2e-3 * reference.audio.std()
        assert ours.state is not None
        assert reference.state is not None
        assert_same_state(ours.state, reference.state, tolerance=1e-3)


def replaying(run: Callable[[], Passed]) -> Callable[[], Passed]:
    """A pass that writes to the same place each time, as a replayed graph does."""
    place = run()

    def replay() -> Passed:
        for mine, new in zip(place, run(), strict=True):
            mine.copy_(new)
        return place

    return replay


def test_results_outlive_the_hops_that_follow():
    vocoder = Vocoder(exact_model(), max_batch=2)
    vocoder._passes = {size: replaying(run) for size, run in vocoder._passes.items() if size[0] == LENGTHS[0]}
    (first,) = vocoder.vocode([VocoderHop(None, mel()[:40], False, 1)])
    assert first.state is not None
    kept = [tensor.clone() for tensor in (first.audio, first.state.source, first.state.audio, first.state.phase)]
    vocoder.vocode([VocoderHop(None, mel()[100:150], False, 2)])
    assert all(map(torch.equal, kept, (first.audio, first.state.source, first.state.audio, first.state.phase)))


def test_nothing_of_an_earlier_batch_is_left_in_a_later_one():
    hop = VocoderHop(None, mel()[:20], True, 1)
    (alone,) = engine().vocode([hop])
    held = vocode(exact_model(), [VocoderHop(None, mel()[:30], False, 8)])[0].state
    engine().vocode([VocoderHop(held, mel()[30:60] * 5, False, 8)] * 5)
    (again,) = engine().vocode([hop])
    assert torch.equal(alone.audio, again.audio)


def test_no_hops_give_no_results():
    assert engine().vocode([]) == []
