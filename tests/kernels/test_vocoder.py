"""The vocoder's Triton kernels, run by Triton's interpreter, give what torch gives, up to each row's end."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lighttts.engine.vocoder_causal import CausalTorchOps
from lighttts.engine.vocoder_holding import Holding
from lighttts.engine.vocoder_layers import Convolution, Finish, Span
from lighttts.engine.vocoder_ops import Margins, Rows, TorchOps
from lighttts.kernels.vocoder import CausalTritonOps, TritonOps
from lighttts.models.causal_hift import CausalHiFTGenerator, Upsampling
from lighttts.models.conv_past import Past
from lighttts.models.directory import ModelDirectory
from lighttts.models.hift import HiFTGenerator, load_hift
from lighttts.models.hift_stream import OVERLAP

GOLDEN = Path(__file__).parents[1] / "golden"
LONGEST, FRAME = 24, 480
FRAMES = [LONGEST, 9, 0, 1, 17]
"""A full row, one that ends early, an unused one, the shortest, and one more."""


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@cache
def model() -> HiFTGenerator:
    torch.set_num_threads(1)
    hift = load_hift(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"))
    assert isinstance(hift, HiFTGenerator)
    return hift


@cache
def causal() -> CausalHiFTGenerator:
    hift = load_hift(ModelDirectory.open(GOLDEN / "cosyvoice3-tiny"))
    assert isinstance(hift, CausalHiFTGenerator)
    return hift


def rows() -> Rows:
    """Rows as an engine has them: integers in columns, some rows with something held back, the rest without."""
    numbers = torch.tensor([FRAMES, [OVERLAP, 0, 0, 0, OVERLAP], [5, 0, 0, 0, 1 << 40], [7, -1, 0, 3, -(1 << 63)]]).T
    frames, held, first, seed = numbers.contiguous().unbind(1)
    mel = torch.randn(len(FRAMES), LONGEST, 80)
    source, audio = torch.rand(2, len(FRAMES), OVERLAP * FRAME) - 0.5
    phase = torch.rand(len(FRAMES), 9, dtype=torch.float64)
    return Rows(mel, frames, held, first, seed, source, audio, phase)


def agree(ours: Tensor, reference: Tensor, ends: list[int], tolerance: float) -> bool:
    """Whether two (rows, positions, ...) agree up to each row's end."""
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    pairs = zip(ours, reference, ends, strict=True)
    return all(torch.allclose(one[:end], other[:end], atol=tolerance) for one, other, end in pairs)


def test_the_pitch_sees_nothing_beyond_a_row_s_end():
    given = rows()
    exists = torch.arange(LONGEST) < given.frames[:, None]
    given = given._replace(mel=given.mel.where(exists[..., None], 0.0))
    ours, reference = TritonOps(model()).pitch(given), TorchOps(model()).pitch(given)
    assert agree(ours, reference, FRAMES, 1e-4)
    alone = model().pitch(given.mel[1:2, : FRAMES[1]])
    assert (ours[1, : FRAMES[1]] - alone).abs().max() < 1e-4


def test_the_excitation_and_its_phase():
    given, f0 = rows(), 20 + 300 * torch.rand(len(FRAMES), LONGEST)
    f0[:, 3:6] = 0.5
    (ours, phase), (reference, expected) = TritonOps(model()).excite(given, f0), TorchOps(model()).excite(given, f0)
    assert agree(ours, reference, [FRAME * count for count in FRAMES], 2e-5)
    used = torch.tensor(FRAMES) > 0
    assert phase.dtype == torch.float64
    assert (phase - expected)[used].abs().max() < 1e-9


def test_spectra_end_in_zeros_where_a_row_ends():
    given, source, margins = rows(), torch.randn(len(FRAMES), LONGEST * FRAME), Margins(7, 7)
    ours = TritonOps(model()).analyse(source, given.frames, margins, torch.float32)
    reference = TorchOps(model()).analyse(source, given.frames, margins, torch.float32)
    ends = [count and sum(margins) + 1 + count * FRAME // 4 for count in FRAMES]
    assert agree(ours, reference, ends, 1e-5)


def test_audio_is_cross_faded_with_what_was_held_and_its_end_is_held():
    given, layer = rows(), torch.randn(len(FRAMES), LONGEST * FRAME // 4 + 1, 18)
    layer[..., 4] += 6
    source, phase = torch.randn(len(FRAMES), LONGEST * FRAME), given.phase + 1
    ours = TritonOps(model()).synthesise(given, source, phase, layer)
    reference = TorchOps(model()).synthesise(given, source, phase, layer)
    assert agree(ours.audio, reference.audio, [FRAME * count for count in FRAMES], 1e-4)
    held = torch.tensor(FRAMES) >= OVERLAP
    assert torch.allclose(ours.held[held], reference.held[held], atol=1e-4)
    assert torch.equal(ours.phase, phase)


def causal_rows() -> Rows:
    """As `rows`, of CosyVoice3's: some frames are known of two rows, fewer than the most in one of them."""
    holding, generator = Holding.of(causal()), torch.Generator().manual_seed(1)
    numbers = torch.tensor([CAUSAL_FRAMES, [holding.context, 3, 0, 0], [5, 1 << 40, 0, 0], [7, -(1 << 63), 0, 3]]).T
    frames, held, first, seed = numbers.contiguous().unbind(1)
    mel = torch.randn(len(CAUSAL_FRAMES), max(CAUSAL_FRAMES), 80, generator=generator)
    source = torch.rand(len(CAUSAL_FRAMES), holding.context * FRAME, generator=generator) - 0.5
    phase = torch.rand(len(CAUSAL_FRAMES), 9, dtype=torch.float64, generator=generator)
    return Rows(mel, frames, held, first, seed, source, source[:, :0], phase)


CAUSAL_FRAMES = [48, 20, 0, 1]
"""More than are held, fewer, an unused row, and the shortest."""


def test_the_causal_excitation_and_its_phase_before_what_is_not_heard():
    given, f0 = causal_rows(), 20 + 300 * torch.rand(len(CAUSAL_FRAMES), max(CAUSAL_FRAMES))
    f0[:, 33:36] = 0.5
    ours, phase = CausalTritonOps(causal()).excite(given, f0)
    reference, expected = CausalTorchOps(causal()).excite(given, f0)
    assert agree(ours, reference, [FRAME * count for count in CAUSAL_FRAMES], 2e-5)
    goes_on = torch.tensor(CAUSAL_FRAMES) > causal().held_back
    assert (phase - expected)[goes_on].abs().max() < 1e-9


def test_causal_audio_is_not_faded_and_what_the_next_hop_looks_back_at_is_held():
    given = causal_rows()
    layer = torch.randn(len(CAUSAL_FRAMES), max(CAUSAL_FRAMES) * FRAME // 4 + 1, 18)
    source = torch.randn(len(CAUSAL_FRAMES), max(CAUSAL_FRAMES) * FRAME)
    ours = CausalTritonOps(causal()).synthesise(given, source, given.phase, layer)
    reference = CausalTorchOps(causal()).synthesise(given, source, given.phase, layer)
    assert agree(ours.audio, reference.audio, [FRAME * count for count in CAUSAL_FRAMES], 1e-4)
    held = Holding.of(causal())
    assert torch.equal(ours.held[0], reference.held[0])
    (excited, mel), kept = ours.held[1].tensor_split((held.excited * FRAME,)), CAUSAL_FRAMES[1]
    assert torch.equal(excited[: kept * FRAME], source[1, : kept * FRAME])
    assert torch.equal(mel[: kept * 80], given.mel[1, :kept].flatten())


PLANES = 3
SPAN = Span(2, 1)
POSITIONS = 2 * LONGEST + 1


def convolutions(channels: tuple[int, int], dtype: torch.dtype) -> Convolution:
    """Three side by side, as blocks of residuals are, of different taps."""
    shapes = ((3, 1), (7, 3), (11, 5))
    return Convolution.beside([torch.nn.Conv1d(*channels, taps, dilation=d) for taps, d in shapes], dtype)


FINISHES = {
    "snakes alone": Finish(alphas=torch.rand(PLANES, 20) * 3),
    "a residual and its snakes": Finish(
        residual=torch.randn(PLANES, len(FRAMES), POSITIONS, 20),
        dtype=torch.float32,
        alphas=torch.rand(PLANES, 20) * 30,
    ),
    "one trunk as all residuals, averaged": Finish(
        residual=torch.randn(1, len(FRAMES), POSITIONS, 20).expand(PLANES, -1, -1, -1),
        total=True,
        slope=0.1,
        dtype=torch.float32,
    ),
    "another trunk beside, later by one, and several snakes": Finish(
        beside=torch.randn(1, len(FRAMES), POSITIONS - 1, 20),
        shift=1,
        dtype=torch.float32,
        alphas=torch.rand(2 * PLANES, 20),
    ),
}


@pytest.mark.parametrize("name", FINISHES)
def test_a_convolution_and_all_that_is_done_to_its_sums(name):
    layer, finish, frames = convolutions((24, 20), torch.float32), FINISHES[name], torch.tensor(FRAMES)
    if finish.alphas is not None and len(finish.alphas) > PLANES:
        layer = Convolution(layer.weight[:3], layer.bias[:1], layer.taps[:1])
    ends = [count and 2 * count + 1 for count in FRAMES]
    x = torch.randn(len(layer.taps), len(FRAMES), POSITIONS, 24)
    zero = x.where((torch.arange(POSITIONS) < torch.tensor(ends)[:, None])[..., None], 0.0)
    reference = TorchOps(model()).convolve(zero, layer, frames, SPAN, POSITIONS, finish)
    ours = TritonOps(model(), tf32=False).convolve(x, layer, frames, SPAN, POSITIONS, finish)
    for one, other in zip(ours, reference, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            for plane, expected in zip(one, other, strict=True):
                assert agree(plane, expected, ends, 2e-5)


def test_a_convolution_in_half_precision_rounds_only_what_it_reads_and_stores():
    layer, frames = convolutions((64, 64), torch.float16), torch.tensor(FRAMES)
    x = torch.randn(PLANES, len(FRAMES), 2 * LONGEST, 64).half()
    finish = Finish(dtype=torch.float32)
    ours = TritonOps(model()).convolve(x, layer, frames, Span(2), x.size(2), finish).value
    exact = Convolution(layer.weight.float(), layer.bias, layer.taps)
    zero = x.float().where((torch.arange(x.size(2)) < 2 * frames[:, None])[..., None], 0.0)
    reference = TorchOps(model()).convolve(zero, exact, frames, Span(2), x.size(2), finish).value
    assert ours is not None
    assert reference is not None
    assert all(agree(one, other, [2 * n for n in FRAMES], 1e-5) for one, other in zip(ours, reference, strict=True))


def test_half_precision_saturates_where_it_would_overflow():
    layer, frames = convolutions((32, 32), torch.float16), torch.tensor([LONGEST])
    x = torch.full((PLANES, 1, LONGEST, 32), 6e4).half()
    finish = Finish(dtype=torch.float16, alphas=torch.ones(PLANES, 32))
    for made in TritonOps(model()).convolve(x, layer, frames, Span(1), LONGEST, finish):
        assert made is not None
        assert made.isfinite().all()
        assert made.abs().max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize(("taps", "rate"), [(16, 8), (11, 5), (7, 3)])
def test_a_transposed_convolution_is_one_of_its_phases_side_by_side(taps, rate):
    conv = torch.nn.ConvTranspose1d(6, 4, taps, rate, padding=(taps - rate) // 2)
    x, layer = torch.randn(2, 10, 6), Convolution.up(conv, torch.float32)
    made = TorchOps(model()).convolve(x[None], layer, torch.tensor([10, 10]), Span(1), 10, Finish(dtype=torch.float32))
    assert made.value is not None
    assert torch.allclose(made.value.view(2, 10 * rate, 4), conv(x.mT).mT, atol=1e-5)


@pytest.mark.parametrize(("taps", "rate"), [(16, 8), (11, 5), (7, 3)])
def test_a_convolution_of_repeated_columns_is_one_of_its_phases_side_by_side(taps, rate):
    conv, x = Upsampling(6, 4, taps, rate), torch.randn(2, 10, 6)
    layer = Convolution.up(conv, torch.float32)
    made = TorchOps(model()).convolve(x[None], layer, torch.tensor([10, 10]), Span(1), 10, Finish(dtype=torch.float32))
    assert made.value is not None
    assert torch.allclose(made.value.view(2, 10 * rate, 4), conv(x.mT, Past()).mT, atol=1e-5)
