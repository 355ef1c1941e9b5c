"""The vocoder engine gives CosyVoice3's hops the audio of the whole mel in one piece, whatever the hops around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lighttts.engine.vocoder import Vocoder
from lighttts.engine.vocoder_holding import Holding
from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.conv_past import Past
from lighttts.models.directory import ModelDirectory
from lighttts.models.hift import load_hift
from lighttts.models.hift_stream import State, VocoderHop, VocoderState, vocode

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice3-tiny"
FRAME = 480
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@cache
def model() -> CausalHiFTGenerator:
    torch.set_num_threads(1)
    hift = load_hift(ModelDirectory.open(TINY))
    assert isinstance(hift, CausalHiFTGenerator)
    # The tiny model's own pitch is next to none, where all of the excitation would be noise.
    hift.f0_predictor.classifier.bias.add_(150.0)
    return hift


@cache
def engine() -> Vocoder:
    return Vocoder(model(), max_batch=3)


@cache
def mel() -> Tensor:
    """400 frames of speech."""
    return load_file(TINY / "golden.safetensors")["hift.mel"][0].T.repeat(9, 1)[:400]


def in_hops(cuts: Sequence[int], seed: int, company: Sequence[VocoderHop] = ()) -> Tensor:
    """The engine's audio of the mel up to the last of `cuts`, hop by hop, each in the same `company`."""
    state: State | None = None
    pieces = []
    for begin, end in pairwise([0, *cuts]):
        result, *_ = engine().vocode([VocoderHop(state, mel()[begin:end], end == cuts[-1], seed), *company])
        pieces.append(result.audio)
        state = result.state
    assert state is None
    return torch.cat(pieces)


def whole(frames: int, seed: int) -> Tensor:
    return vocode(model(), [VocoderHop(None, mel()[:frames], True, seed)])[0].audio


HOPS = st.tuples(st.integers(9, 98), st.lists(st.integers(1, 100), max_size=3), st.integers(1, 40))


@given(HOPS, st.integers(0, (1 << 64) - 1), st.booleans())
@settings(max_examples=7, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_hops_of_any_lengths_join_to_the_audio_of_the_whole(hops, seed, company):
    """The first longer than what is never heard yet; the others hold so much that a frame is enough."""
    first, middles, last = hops
    cuts = [first]
    for length in [*middles, last]:
        cuts.append(min(cuts[-1] + length, 400))
    beside = [VocoderHop(None, mel()[200:230], False, 1), VocoderHop(None, mel()[:2], True, 2)] if company else []
    ours, reference = in_hops(cuts, seed, beside), whole(cuts[-1], seed)
    assert ours.shape == reference.shape == (cuts[-1] * FRAME,)
    assert (ours - reference).abs().max() < TOLERANCE


def test_the_excitation_is_heard_in_that_audio():
    """What the tolerance above is worth: another seed's noise, or a pitch of none, is far beyond it."""
    assert (whole(100, 1) - whole(100, 2)).abs().max() > 10 * TOLERANCE
    assert whole(100, 1).std() > 100 * TOLERANCE


def test_a_state_has_what_the_layers_look_back_at_and_what_was_not_heard():
    holding = Holding.of(model())
    states = []
    for frames in (30, 90):
        (result,) = engine().vocode([VocoderHop(None, mel()[:frames], False, 4)])
        assert result.audio.shape == ((frames - holding.unheard) * FRAME,)
        states.append(result.state)
    short, long = states
    assert isinstance(short, VocoderState)
    assert isinstance(long, VocoderState)
    assert torch.equal(short.mel, mel()[:30])
    assert short.first == 0
    assert torch.equal(long.mel, mel()[90 - holding.frames : 90])
    assert long.first == 90 - holding.frames


def test_a_hop_that_is_all_of_a_request_may_be_longer_than_the_longest():
    (ours,) = engine().vocode([VocoderHop(None, mel(), True, 4)])
    assert torch.equal(ours.audio, whole(400, 4))


def changed(at: int, *, mel_too: bool) -> Tensor:
    """By how much each frame's audio changes if the excitation, or the mel as well, of one frame does."""

    def audio(change: float) -> Tensor:
        source = torch.sin(torch.arange(80 * FRAME) / 7)[None]
        source[:, at * FRAME : (at + 1) * FRAME] += change
        given = mel()[None, :80].clone()
        given[:, at] += change * mel_too
        return model().decode(given, source, Past(), final=True)

    return (audio(0.5) - audio(0.0)).view(80, FRAME).abs().amax(1)


@pytest.mark.parametrize("mel_too", [False, True])
def test_audio_depends_on_what_the_layers_look_back_at_and_nothing_before(mel_too):
    difference = changed(30, mel_too=mel_too)
    assert difference[30 + model().look_back + 1 :].max() == 0
    assert difference[30 + model().look_back - 1] > 0
    assert difference[: 30 - model().held_back + 1].max() == 0
