"""The vocoder reproduces the reference, in one pass and in hops, and can be trained.

The reference sums the excitation's phase in float32, where a last-bit difference of the predicted pitch moves a sample
by a thousandth. So each stage is held to 1e-4 from the reference's own input, and the whole to what one such bit does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, load_flow
from lighttts.models.hift import HiFTGenerator, fold_weight_norm, load_hift
from lighttts.models.hift_config import HiFTConfig
from lighttts.models.hift_stream import OVERLAP, VocoderHop, VocoderState, vocode
from lighttts.models.source import HarmonicSource, Onset
from lighttts.models.stft import FourierFrames

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"
FRAME = 480


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="module")
def hift() -> HiFTGenerator:
    torch.set_num_threads(1)
    return load_hift(ModelDirectory.open(TINY))


@pytest.fixture(scope="module")
def flow() -> CausalMaskedDiffWithXvec:
    return load_flow(ModelDirectory.open(TINY))


@pytest.fixture(autouse=True)
def _inference(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.inference_mode("training" not in request.node.name):
        yield


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference in units of the reference's standard deviation."""
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def test_the_pitch_matches_the_reference(hift, golden):
    assert error(hift.pitch(golden["hift.mel"].transpose(1, 2)), golden["hift.f0"]) < 1e-4


def test_the_pitch_is_computed_without_tf32_whatever_the_process_allows_elsewhere(hift, golden, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    first = hift.f0_predictor.condnet[0].register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    hift.pitch(golden["hift.mel"].transpose(1, 2))
    first.remove()
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_the_excitation_matches_the_reference(hift, golden):
    assert error(hift.m_source(golden["hift.f0"], None)[:, None], golden["hift.source"]) < 1e-4


def test_the_audio_matches_the_reference(hift, golden):
    audio = hift.decode(golden["hift.mel"].transpose(1, 2), golden["hift.source"][:, 0])
    assert error(audio, golden["hift.wav"]) < 1e-4


def streamed(
    flow: CausalMaskedDiffWithXvec, hift: HiFTGenerator, golden: dict[str, Tensor], seed: int | None = None
) -> list[Tensor]:
    """The reference's stream: prompt of 40 tokens, 230 tokens, hops as `stream.schedule` has them."""
    tokens = torch.cat([golden["flow.prompt_token"][0], golden["flow.token"][0]])
    state, vocoder, audio = flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0]), None, []
    prompt = golden["flow.prompt_token"].size(1)
    for offset, given, final, _ in golden["stream.schedule"].tolist():
        begin = prompt + offset if offset else 0
        (mel,) = flow.advance([FlowHop(state, tokens[begin : prompt + given], bool(final))])
        new = mel.mel[0 if offset else 2 * prompt :]
        (result,) = vocode(hift, [VocoderHop(vocoder, new, bool(final), seed)])
        state, vocoder = mel.state, result.state
        audio.append(result.audio)
    assert vocoder is None
    return audio


def offline(flow: CausalMaskedDiffWithXvec, hift: HiFTGenerator, golden: dict[str, Tensor]) -> Tensor:
    tokens = torch.cat([golden["flow.prompt_token"][0], golden["flow.token"][0]])
    state = flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0])
    (mel,) = flow.advance([FlowHop(state, tokens, final=True)], chunked=False)
    prompt = golden["flow.prompt_feat"].size(1)
    return vocode(hift, [VocoderHop(None, mel.mel[prompt:], True, None)])[0].audio


def last_bit_of_pitch(hift: HiFTGenerator, make: str, *given: object) -> tuple[Tensor, Tensor]:
    """Audio as it is, and with the pitch up by 8e-6 Hz, one last bit of a float32 of around 100."""
    run = {"stream": lambda: torch.cat(streamed(*given)), "offline": lambda: offline(*given)}[make]
    plain, bias = run(), hift.f0_predictor.classifier.bias
    bias += 8e-6
    try:
        return plain, run()
    finally:
        bias -= 8e-6


@pytest.mark.parametrize(("make", "name"), [("stream", "stream.wav_causal"), ("offline", "offline.wav")])
def test_the_whole_path_matches_the_reference_to_a_last_bit_of_the_pitch(flow, hift, golden, make, name):
    reference = golden[name][0]
    ours, moved = last_bit_of_pitch(hift, make, flow, hift, golden)
    assert ours.shape == reference.shape
    assert (ours - reference).std() < 5e-3 * reference.std()
    assert (ours - reference).std() < (moved - ours).std()
    assert error(ours, reference) < 2 * error(moved, ours)


def test_hops_give_the_reference_s_numbers_of_samples(flow, hift, golden):
    assert [len(part) for part in streamed(flow, hift, golden)] == golden["stream.schedule"][:, 3].tolist()


def test_spectra_are_those_of_the_short_time_fourier_transform():
    signal = torch.randn(2, 960)
    fourier, window = FourierFrames(16, 4), torch.hann_window(16)
    spectra = torch.stft(signal, 16, 4, 16, window, return_complex=True)
    assert torch.allclose(fourier.analyse(signal), torch.cat([spectra.real, spectra.imag], dim=1), atol=1e-5)
    other = torch.randn(2, 9, 241, dtype=torch.complex64)
    inverse = torch.istft(other, 16, 4, 16, window)
    assert torch.allclose(fourier.synthesise(torch.cat([other.real, other.imag], dim=1)), inverse, atol=1e-5)


def sine(pitch: float, start: int, samples: int) -> Tensor:
    """A sine of `pitch` Hz at samples `start` + 1/2 and on."""
    return torch.sin(2 * torch.pi * pitch / 24_000 * (torch.arange(start, start + samples).double() + 0.5))


def fundamental(hift: HiFTGenerator) -> HarmonicSource:
    """A source whose excitation is a hundredth of the fundamental alone, hence not bent by its tanh."""
    source = HarmonicSource(hift.config.source)
    source.l_linear.weight.copy_(torch.eye(9)[:1] * 0.1)
    source.l_linear.bias.zero_()
    return source


def test_the_phase_goes_on_over_hops_and_is_right_after_minutes(hift):
    source, pitch = fundamental(hift), 220.5
    frames = 50 * 120
    phase = torch.zeros(1, 9, dtype=torch.float64)
    first, phase = source.onwards(torch.full((1, frames), pitch), None, Onset(phase, 0))
    f0 = torch.full((1, OVERLAP + 20), pitch)
    second, _ = source.onwards(f0, None, Onset(phase, OVERLAP))
    joined = torch.cat([first[0, -FRAME:], second[0, OVERLAP * FRAME :]])
    expected = sine(pitch, (frames - 1) * FRAME, 21 * FRAME)
    assert (joined / 0.01 - expected).abs().max() < 1e-3


def test_the_phase_has_no_seam_where_the_pitch_changes(hift):
    source = fundamental(hift)
    pitch = 100 + 60 * torch.rand(1, 120)
    start = torch.zeros(1, 9, dtype=torch.float64)
    first, phase = source.onwards(pitch[:, :50], None, Onset(start, 0))
    second, _ = source.onwards(pitch[:, 50 - OVERLAP :], None, Onset(phase, OVERLAP))
    joined = torch.cat([first[0], second[0, OVERLAP * FRAME :]])
    fastest = 0.01 * 2 * torch.pi * pitch.max() / 24_000
    assert joined.diff().abs().max() < fastest * 1.001


def test_noise_is_a_third_of_the_amplitude_where_nothing_is_voiced(hift):
    noise, f0 = torch.randn(1, 40 * FRAME), torch.zeros(1, 40)
    quiet, loud = hift.m_source(f0, None), hift.m_source(f0, noise)
    weight = hift.m_source.l_linear.weight[0].norm()
    assert (torch.atanh(loud) - torch.atanh(quiet)).std() == pytest.approx(float(weight * 0.1 / 3), rel=0.02)


def states_are_equal(one: VocoderState, other: VocoderState) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("mel", "source", "audio", "phase"))


def test_audio_depends_on_the_seed_and_on_nothing_around_it(flow, hift, golden):
    mels = [golden["hift.mel"][0].T * scale for scale in (1.0, 0.5, 0.7)]
    (held,) = vocode(hift, [VocoderHop(None, mels[0][:40], False, 9)])
    hops = [
        VocoderHop(None, mels[0], True, 1),
        VocoderHop(held.state, mels[1][:52], False, 9),
        VocoderHop(None, mels[2], False, 1 << 63),
        VocoderHop(None, mels[2], True, None),
        VocoderHop(held.state, mels[1][:20], True, 9),
        VocoderHop(None, mels[0], True, 2),
    ]
    together = vocode(hift, hops)
    for hop, result in zip(hops, together, strict=True):
        (alone,) = vocode(hift, [hop])
        assert (result.audio - alone.audio).abs().max() < 1e-4
        assert (result.state is None) == hop.final
    assert not torch.allclose(together[0].audio, together[5].audio, atol=1e-4)
    again = vocode(hift, hops)
    assert all(torch.equal(one.audio, other.audio) for one, other in zip(together, again, strict=True))
    assert states_are_equal(together[2].state, again[2].state)


def test_noise_belongs_to_the_sample_not_to_the_hop(flow, hift, golden):
    """The same frames in other hops: alike but near the joins, where the vocoder saw another context."""
    mel = golden["hift.mel"][0].T
    (whole,) = vocode(hift, [VocoderHop(None, mel, True, 5)])
    (head,) = vocode(hift, [VocoderHop(None, mel[:36], False, 5)])
    (tail,) = vocode(hift, [VocoderHop(head.state, mel[36:], True, 5)])
    joined = torch.cat([head.audio, tail.audio])
    calm = slice(0, 20 * FRAME)
    assert joined.shape == whole.audio.shape
    assert error(joined[calm], whole.audio[calm]) < 1e-3


def test_fading_over_keeps_the_level(hift, golden):
    """Where the held back and the new version agree, the fade changes nothing; upstream's raises the level by 8%."""
    mel = golden["hift.mel"][0].T
    (head,) = vocode(hift, [VocoderHop(None, mel[:40], False, 5)])

    def fade(held: Tensor) -> Tensor:
        (result,) = vocode(hift, [VocoderHop(replace(head.state, audio=held), mel[40:], True, 5)])
        return result.audio[: OVERLAP * FRAME]

    silence, ones = torch.zeros(OVERLAP * FRAME), torch.ones(OVERLAP * FRAME)
    share = fade(ones) - fade(silence)
    assert (share.diff() < 1e-6).all()
    assert (share[0], share[-1]) == (pytest.approx(0.92, abs=0.02), pytest.approx(0.08, abs=0.02))
    new = fade(silence) / (1 - share)
    assert (fade(new) - new).abs().max() < 1e-5


def test_hops_join_without_a_step(hift, golden):
    mel = golden["hift.mel"][0].T.repeat(2, 1)
    (head,) = vocode(hift, [VocoderHop(None, mel[:60], False, 5)])
    (tail,) = vocode(hift, [VocoderHop(head.state, mel[60:], True, 5)])
    steps, join = torch.cat([head.audio, tail.audio]).diff().abs(), len(head.audio)
    for edge in (join, join + OVERLAP * FRAME):
        assert steps[edge - 1] < torch.cat([steps[: edge - 1], steps[edge:]]).max()


def test_folding_weight_norm_changes_nothing(golden):
    torch.manual_seed(3)
    model = HiFTGenerator(HiFTConfig.read(ModelDirectory.open(TINY).settings))
    mel, noise = golden["hift.mel"].transpose(1, 2), torch.randn(1, 60 * FRAME)
    before, _ = model(mel, noise)
    fold_weight_norm(model)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert torch.allclose(model(mel, noise)[0], before, atol=1e-5)


def test_training_reaches_every_parameter():
    torch.manual_seed(1)
    model = HiFTGenerator(HiFTConfig.read(ModelDirectory.open(TINY).settings)).train()
    audio, f0 = model(torch.randn(2, 20, 80), torch.randn(2, 20 * FRAME))
    assert audio.shape == (2, 20 * FRAME)
    (audio.square().mean() + f0.mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("generator.HiFTGenerator", "generator.Vocos", "hift is no HiFTGenerator or CausalHiFTGenerator at 24000 Hz"),
        ("sample_rate: 24000", "sample_rate: 22050", "at 24000 Hz"),
        ("f0_predictor.ConvRNN", "f0_predictor.CausalConvRNN", "hift.f0_predictor is no ConvRNNF0Predictor"),
    ],
)
def test_a_yaml_of_another_vocoder_is_refused_by_name(tmp_path, old, new, said):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    text = (model / "cosyvoice2.yaml").read_text()
    assert old in text
    (model / "cosyvoice2.yaml").write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=said):
        load_hift(ModelDirectory.open(model))
