"""CosyVoice3's vocoder reproduces the reference, and what it makes in pieces is what it makes of the whole.

The reference sums the excitation's phase in float32 over the whole stream, ours is summed in float64. So the whole path
is held to what a last bit of the pitch does, as `test_hift.py` says; with the reference's pitch and sum, to much less.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.conv_past import Past
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import Flow, FlowHop, load_flow
from lighttts.models.hift import load_hift
from lighttts.models.hift_stream import VocoderHop, vocode

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice3-tiny"
FRAME = 480
PITCH = load_file(Path(__file__).parent / "data" / "cosyvoice3_tiny_pitch.safetensors")
"""Of `stream.wav_causal` and `offline.wav`, as the reference's modules predict it from the reference's mel."""
HELD = 8
"""Mel frames that are heard with the next hop."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="module")
def hift() -> CausalHiFTGenerator:
    torch.set_num_threads(1)
    return load_hift(ModelDirectory.open(TINY))


@pytest.fixture(scope="module")
def flow() -> Flow:
    return load_flow(ModelDirectory.open(TINY))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference in units of the reference's standard deviation."""
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def test_the_pitch_matches_the_reference_and_is_computed_in_double_precision(hift, golden):
    assert torch.equal(hift.pitch(golden["hift.mel"].transpose(1, 2), Past(), final=True), golden["hift.f0"])
    assert {parameter.dtype for parameter in hift.f0_predictor.parameters()} == {torch.float64}


def test_the_excitation_matches_the_reference(hift, golden):
    assert error(hift.m_source(golden["hift.f0"], None)[:, None], golden["hift.source"]) < 1e-4


@pytest.mark.parametrize(("name", "known", "final"), [("hift.wav", 60, True), ("hift.wav_partial", 57, False)])
def test_the_audio_matches_the_reference(hift, golden, name, known, final):
    source = golden["hift.source"][:, 0, : known * FRAME]
    audio = hift.decode(golden["hift.mel"].transpose(1, 2), source, Past(), final=final)
    assert error(audio, golden[name]) < 1e-4


def in_hops(hift: CausalHiFTGenerator, mel: Tensor, cuts: list[int], seed: int | None = None) -> Tensor:
    state, audio = None, []
    for begin, end in zip([0, *cuts], [*cuts, len(mel)], strict=True):
        (result,) = vocode(hift, [VocoderHop(state, mel[begin:end], end == len(mel), seed)])
        audio.append(result.audio)
        state = result.state
        assert sum(map(len, audio)) == FRAME * (end - (HELD if state else 0))
    return torch.cat(audio)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(9, 60), st.lists(st.integers(2, 50), max_size=4), st.integers(2, 9), st.sampled_from([None, 3]))
def test_any_hops_give_the_audio_of_the_whole(hift, golden, first, others, rest, seed):
    cuts = list(accumulate([first, *others]))
    mel = golden["hift.mel"][0].T.repeat(5, 1)[: cuts[-1] + rest]
    with torch.inference_mode():
        (whole,) = vocode(hift, [VocoderHop(None, mel, True, seed)])
        joined = in_hops(hift, mel, cuts, seed)
    assert error(joined, whole.audio) < 1e-3
    assert (joined - whole.audio).std() < 1e-5 * whole.audio.std()


def test_the_pitch_of_hops_is_that_of_the_whole_bit_for_bit(hift, golden):
    mel, past, parts = golden["hift.mel"].transpose(1, 2), Past(), []
    for begin, end in ((0, 9), (9, 20), (20, 60)):
        parts.append(hift.pitch(mel[:, begin:end], past, final=end == 60))
        past = Past(past.kept)
    assert torch.equal(torch.cat(parts, dim=1), hift.pitch(mel, Past(), final=True))


def mels(flow: Flow, golden: dict[str, Tensor], name: str) -> list[Tensor]:
    """The mel of the reference's 230 tokens behind a prompt of 40: of `offline.wav` in one piece, of
    `stream.wav_causal` in hops as `stream.schedule` has them."""
    tokens = torch.cat([golden["flow.prompt_token"][0], golden["flow.token"][0]])
    state, prompt = flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0]), 40
    if name == "offline.wav":
        (mel,) = flow.advance([FlowHop(state, tokens, final=True)], chunked=False)
        return [mel.mel[2 * prompt :]]
    parts = []
    for offset, given_tokens, final, _ in golden["stream.schedule"].tolist():
        begin = prompt + offset if offset else 0
        (mel,) = flow.advance([FlowHop(state, tokens[begin : prompt + given_tokens], bool(final))])
        parts.append(mel.mel[0 if offset else 2 * prompt :])
        state = mel.state
    return parts


def vocoded(hift: CausalHiFTGenerator, parts: list[Tensor]) -> list[Tensor]:
    """The audio of a mel in parts, without noise."""
    vocoder, audio = None, []
    for number, part in enumerate(parts, 1):
        (result,) = vocode(hift, [VocoderHop(vocoder, part, number == len(parts), None)])
        vocoder = result.state
        audio.append(result.audio)
    return audio


WHOLE = pytest.mark.parametrize("name", ["stream.wav_causal", "offline.wav"])


@WHOLE
def test_the_whole_path_matches_the_reference_to_a_last_bit_of_the_pitch(flow, hift, golden, name):
    def run() -> Tensor:
        return torch.cat(vocoded(hift, mels(flow, golden, name)))

    reference, ours, bias = golden[name][0], run(), hift.f0_predictor.classifier.bias
    bias += 8e-6
    moved = run()
    bias -= 8e-6
    assert (ours - reference).std() < 1e-2 * reference.std()
    assert (ours - reference).std() < (moved - ours).std()
    assert error(ours, reference) < 2 * error(moved, ours)


@WHOLE
def test_given_the_reference_s_pitch_and_its_sum_the_whole_path_matches_it(flow, hift, golden, name):
    """So our flow and all of our vocoder but these two hold on their own what the stages hold one by one."""
    mel, reference = torch.cat(mels(flow, golden, name)), golden[name][0]
    audio = hift.decode(mel[None], hift.m_source(PITCH[name], None), Past(), final=True)[0]
    assert (audio - reference).std() < 1e-5 * reference.std()
    assert error(audio, reference) < 5e-4


@WHOLE
def test_a_sum_in_double_precision_accounts_for_most_of_the_difference(flow, hift, golden, name):
    """The float32 sum is off by thousandths of a radian; the mel's last bits move the audio by much less."""
    mel, reference = torch.cat(mels(flow, golden, name)), golden[name][0]
    given, ours = PITCH[name], hift.pitch(mel[None], Past(), final=True)
    assert (ours - given).abs().max() < 5e-5
    rates, turn = hift.m_source.rates(given), 2 * torch.pi * FRAME
    assert 2e-3 < ((rates.cumsum(-1).double() - rates.double().cumsum(-1)) * turn).abs().max() < 2e-2
    summed, by_ours = (
        hift.decode(mel[None], hift.m_source.follow(f0, None, torch.zeros(1, 9, 1).double())[0], Past(), final=True)[0]
        for f0 in (given, ours)
    )
    assert 4e-3 * reference.std() < (summed - reference).std() < 1e-2 * reference.std()
    assert (by_ours - summed).std() < (summed - reference).std() / 3


def test_hops_give_the_reference_s_numbers_of_samples(flow, hift, golden):
    parts = vocoded(hift, mels(flow, golden, "stream.wav_causal"))
    assert [len(part) for part in parts] == golden["stream.schedule"][:, 3].tolist()


def test_audio_depends_on_the_seed_and_on_nothing_around_it(hift, golden):
    mels = [golden["hift.mel"][0].T * scale for scale in (1.0, 0.5, 0.7)]
    (begun,) = vocode(hift, [VocoderHop(None, mels[0][:40], False, 9)])
    hops = [
        VocoderHop(None, mels[0], True, 1),
        VocoderHop(begun.state, mels[1][:52], False, 9),
        VocoderHop(None, mels[2], False, 1 << 63),
        VocoderHop(begun.state, mels[1][:20], True, 9),
        VocoderHop(begun.state, mels[2][:20], True, 9),
        VocoderHop(None, mels[0], True, 2),
    ]
    together = vocode(hift, hops)
    for hop, result in zip(hops, together, strict=True):
        (alone,) = vocode(hift, [hop])
        assert torch.equal(result.audio, alone.audio)
        assert (result.state is None) == hop.final
    assert not torch.allclose(together[0].audio, together[5].audio, atol=1e-4)


def test_hops_of_one_length_may_be_computed_together(hift, golden, monkeypatch):
    """As on a GPU."""
    mels = [golden["hift.mel"][0].T * scale for scale in (1.0, 0.5, 0.7)]
    begun = [vocode(hift, [VocoderHop(None, mel[:30], False, seed)])[0].state for seed, mel in enumerate(mels)]
    hops = [
        VocoderHop(state, mel[30:50], False, seed) for seed, (state, mel) in enumerate(zip(begun, mels, strict=True))
    ]
    alone = vocode(hift, hops)
    monkeypatch.setattr(CausalHiFTGenerator, "device", torch.device("meta"))
    together = vocode(hift, hops)
    for one, other in zip(alone, together, strict=True):
        assert error(other.audio, one.audio) < 1e-3
        assert [tail.shape for tail in other.state.tails] == [tail.shape for tail in one.state.tails]


def test_a_state_is_not_changed_by_going_on_from_it(hift, golden):
    mel = golden["hift.mel"][0].T
    (begun,) = vocode(hift, [VocoderHop(None, mel[:40], False, 9)])
    before = [tail.clone() for tail in begun.state.tails]
    vocode(hift, [VocoderHop(begun.state, mel[40:], True, 9)])
    assert all(torch.equal(tail, old) for tail, old in zip(begun.state.tails, before, strict=True))


def test_noise_is_uniform_in_a_third_of_the_amplitude_where_nothing_is_voiced(hift):
    noise, f0 = torch.rand(1, 9, 40 * FRAME), torch.zeros(1, 40)
    weight = hift.m_source.l_linear.weight[0]
    added = torch.atanh(hift.m_source(f0, noise)) - torch.atanh(hift.m_source(f0, None))
    assert float(added.mean()) == pytest.approx(float(weight.sum() * 0.05 / 3), abs=1e-3)
    assert float(added.std()) == pytest.approx(float(weight.norm() * 0.1 / 3 / 12**0.5), rel=0.02)


def test_the_phase_goes_on_over_hops_and_is_right_after_minutes(hift):
    pitch, frames = 220.5, 50 * 120
    f0 = torch.full((1, frames), pitch)
    start = torch.zeros(1, 9, 1, dtype=torch.float64)
    whole, _ = hift.m_source.follow(f0, None, start)
    first, phase = hift.m_source.follow(f0[:, :5000], None, start)
    second, _ = hift.m_source.follow(f0[:, 5000:], None, phase)
    assert torch.allclose(torch.cat([first, second], dim=1), whole, atol=1e-6)
    cycles = torch.arange(1, frames + 1) * FRAME * hift.m_source.rates(f0).double() % 1
    exact = hift.m_source.merge(f0, torch.sin(2 * torch.pi * cycles).float(), None)
    assert (whole - exact).abs().max() < 1e-3
