"""The flow reproduces the reference, in one pass and in hops, and can be trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, Flow, FlowHop, FlowState, load_flow
from lighttts.models.flow_config import FlowConfig
from lighttts.models.streaming import Window

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["cosyvoice2-tiny", "cosyvoice3-tiny"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return TINY.parent / request.param


@pytest.fixture(scope="module")
def golden(tiny: Path) -> dict[str, Tensor]:
    return load_file(tiny / "golden.safetensors")


@pytest.fixture(scope="module")
def flow(tiny: Path) -> Flow:
    torch.set_num_threads(1)
    return load_flow(ModelDirectory.open(tiny))


cosyvoice2_only = pytest.mark.parametrize("tiny", ["cosyvoice2-tiny"], indirect=True)


@pytest.fixture(autouse=True)
def _inference(request: pytest.FixtureRequest):
    with torch.inference_mode("training" not in request.node.name):
        yield


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference in units of the reference's standard deviation."""
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.std())


def all_tokens(golden: dict[str, Tensor], count: int) -> Tensor:
    return torch.cat([golden["flow.prompt_token"][0], golden["flow.token"][0, :count]])


def start(flow: Flow, golden: dict[str, Tensor]) -> FlowState:
    return flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0])


def test_the_noise_table_is_the_reference_s(flow, golden):
    assert torch.equal(flow.decoder.noise[:1000].T[None], golden["flow.rand_noise"])


@pytest.mark.parametrize(("name", "chunk"), [("full", None), ("stream", 50)])
def test_the_estimator_matches_the_reference(flow, golden, name, chunk):
    estimator = flow.decoder.estimator
    x, mu, cond = (golden[f"est.{key}"].transpose(1, 2) for key in ("x", "mu", "cond"))
    window = Window.whole(None, x.size(1), chunk, CPU, flow.decoder.shape.tail)
    out = estimator(x, mu, golden["est.spks"], cond, estimator.time_mlp(golden["est.t"]), window)
    assert error(out.transpose(1, 2), golden[f"est.out_{name}"]) < 1e-4


@cosyvoice2_only
@pytest.mark.parametrize(("name", "chunk", "ahead"), [("full", None, 0), ("stream", 25, 3)])
def test_the_encoder_matches_the_reference(flow, golden, name, chunk, ahead):
    tokens = all_tokens(golden, 60)[None]
    count = tokens.size(1) - ahead
    known = (torch.arange(count + 3) < tokens.size(1))[None]
    embedded = F.pad(flow.input_embedding(tokens), (0, 0, 0, 3 - ahead))
    windows = (Window.whole(None, count, chunk, CPU), Window.whole(None, 2 * count, chunk and 2 * chunk, CPU))
    assert error(flow.encoder(embedded, known, *windows), golden[f"flow.encoder_{name}"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "chunked", "final"), [("full", False, True), ("stream_final", True, True), ("stream_partial", True, False)]
)
def test_the_mel_matches_the_reference(flow, golden, name, chunked, final):
    (result,) = flow.advance([FlowHop(start(flow, golden), all_tokens(golden, 60), final)], chunked=chunked)
    mel = result.mel[golden["flow.prompt_feat"].size(1) :]
    assert error(mel.T[None], golden[f"flow.mel_{name}"]) < 1e-4


def in_hops(flow: Flow, state: FlowState, tokens: Tensor, hops: list[int]) -> Tensor:
    mels, position = [], 0
    for count in hops:
        (result,) = flow.advance([FlowHop(state, tokens[position : position + count + 3], final=False)])
        assert result.state is not None
        mels.append(result.mel)
        state, position = result.state, position + count
    (result,) = flow.advance([FlowHop(state, tokens[position:], final=True)])
    assert result.state is None
    return torch.cat([*mels, result.mel])


@pytest.mark.parametrize("hops", [[75, 50, 100], [25] * 10, [125], [50, 175]])
def test_hops_give_the_mel_of_one_chunk_masked_pass(flow, golden, hops):
    tokens = all_tokens(golden, 230)
    (whole,) = flow.advance([FlowHop(start(flow, golden), tokens, final=True)])
    assert (in_hops(flow, start(flow, golden), tokens, hops) - whole.mel).abs().max() < 1e-5


def test_a_state_is_not_changed_by_advancing_from_it(flow, golden):
    tokens = all_tokens(golden, 100)
    (first,) = flow.advance([FlowHop(start(flow, golden), tokens[:53], final=False)])
    (once,) = flow.advance([FlowHop(first.state, tokens[50:], final=True)])
    flow.advance([FlowHop(first.state, tokens[60:90], final=True)])
    (again,) = flow.advance([FlowHop(first.state, tokens[50:], final=True)])
    assert torch.equal(once.mel, again.mel)


def test_requests_at_different_positions_share_a_batch(flow, golden):
    tokens = all_tokens(golden, 230)
    fresh, bare = start(flow, golden), flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0, :0])
    (ahead,) = flow.advance([FlowHop(fresh, tokens[:128], final=False)])
    hops = [
        FlowHop(ahead.state, tokens[125:178], final=False),
        FlowHop(fresh, tokens[:78], final=False),
        FlowHop(bare, tokens[40:47], final=True),
        FlowHop(ahead.state, tokens[125:133], final=True),
        FlowHop(bare, tokens[100:228], final=False),
    ]
    together = flow.advance(hops)
    for hop, result in zip(hops, together, strict=True):
        (alone,) = flow.advance([hop])
        assert (result.mel - alone.mel).abs().max() < 1e-5
        assert (result.state is None) == hop.final
        if result.state is not None:
            follow = tokens[200:220]
            (after,) = flow.advance([FlowHop(result.state, follow, final=True)])
            (after_alone,) = flow.advance([FlowHop(alone.state, follow, final=True)])
            assert (after.mel - after_alone.mel).abs().max() < 1e-5


def test_requests_without_chunk_mask_share_a_batch(flow, golden):
    tokens = all_tokens(golden, 100)
    hops = [FlowHop(start(flow, golden), tokens[:n], final=True) for n in (130, 61, 7)]
    for hop, result in zip(hops, flow.advance(hops, chunked=False), strict=True):
        (alone,) = flow.advance([hop], chunked=False)
        assert (result.mel - alone.mel).abs().max() < 1e-5


def test_the_cache_is_as_large_as_its_formula_says(flow, golden):
    (result,) = flow.advance([FlowHop(start(flow, golden), all_tokens(golden, 100)[:103], final=False)])
    solver, shape = result.state.solver, flow.decoder.shape
    keys_values = 200 * shape.passes * shape.layers * 2 * shape.rows * shape.width * 4
    assert sum(chunk.nbytes for chunk in solver.chunks) == keys_values
    tails = shape.passes * shape.rows * shape.tail * shape.channels * 4
    assert result.state.solver.tails.nbytes == tails
    assert result.state.bytes < 1.1 * keys_values + tails


def test_training_reaches_every_parameter_whatever_the_padding():
    torch.manual_seed(1)
    model = CausalMaskedDiffWithXvec(FlowConfig.read(ModelDirectory.open(TINY).settings)).train()
    tokens, lengths = torch.randint(0, 100, (3, 40)), torch.tensor([40, 31, 7])
    mu = model.encode(tokens, lengths, chunked=True)
    speaker = model.speaker(torch.randn(3, 192))
    estimator = model.decoder.estimator
    window = Window.whole(2 * lengths, 80, 50, CPU)
    velocity = estimator(
        torch.randn(3, 80, 80), mu, speaker, torch.zeros_like(mu), estimator.time_mlp(torch.rand(3)), window
    )
    known = torch.arange(80) < 2 * lengths[:, None]
    velocity[known].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@cosyvoice2_only
def test_encoding_ignores_padding(flow, golden):
    tokens = all_tokens(golden, 60)
    padded = torch.stack([tokens, F.pad(tokens[:33], (0, 67), value=5)])
    for chunked in (True, False):
        mu = flow.encode(padded, torch.tensor([100, 33]), chunked=chunked)
        assert (mu[1, :66] - flow.encode(tokens[None, :33], chunked=chunked)[0]).abs().max() < 1e-5


def changed(tiny: Path, folder: Path, old: str, new: str) -> ModelDirectory:
    model = Path(shutil.copytree(tiny, folder / "model"))
    path = next(model.glob("*.yaml"))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return ModelDirectory.open(model)


def test_a_yaml_of_another_flow_is_refused_by_name(tmp_path):
    directory = changed(TINY, tmp_path, "flow.flow.CausalMaskedDiffWithXvec", "flow.flow.MaskedDiffWithXvec")
    with pytest.raises(ModelError, match="MaskedDiffWithXvec; a model with CausalMaskedDiffWithXvec or Caus"):
        load_flow(directory)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    input_size: 80", "    input_size: 512", "flow.input_size is 512"),
        ("in_channels: 80\n        channels", "in_channels: 64\n        channels", "layer.in_channels is 64"),
        ("mel_dim: 80", "mel_dim: 100", "mu_dim is 80, but the flows that are served have 100"),
        ("<chunk_size> * <token_mel_ratio>", "<chunk_size>", "static_chunk_size % token_mel_ratio is 1"),
        ("dim: 64\n", "dim: 72\n", "dim % 16 is 8"),
        ("!new:cosyvoice.flow.DiT.dit.DiT", "!new:cosyvoice.flow.decoder.ConditionalDecoder", "class is 'Conditional"),
        ("token_mel_ratio: 2", "token_mel_ratio: 4", "token_mel_ratio is 4"),
        ("depth: 2", "depth: 3", "lacks the tensor decoder.estimator.transformer_blocks.2."),
    ],
)
def test_what_no_cosyvoice3_flow_has_is_refused_by_key(tmp_path, old, new, said):
    with pytest.raises(ModelError) as caught:
        load_flow(changed(TINY.parent / "cosyvoice3-tiny", tmp_path, old, new))
    assert said in caught.value.text


def test_noise_belongs_to_the_absolute_frame_and_ends_with_its_table(flow):
    noise = flow.decoder.noise_at([7, 14_990], 20)
    assert torch.equal(noise[0], flow.decoder.noise[7:27])
    assert torch.equal(noise[1, :10], flow.decoder.noise[14_990:])
    assert torch.equal(noise[1, 10:], flow.decoder.noise[-1:].expand(10, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_layers_give_nearly_the_same_mel_in_float32(flow, golden, tiny, dtype):
    half = load_flow(ModelDirectory.open(tiny), dtype=dtype)
    mel = in_hops(half, start(half, golden), all_tokens(golden, 85), [75])
    (exact,) = flow.advance([FlowHop(start(flow, golden), all_tokens(golden, 85), final=True)])
    assert mel.dtype == torch.float32
    assert half.decoder.noise.dtype == torch.float32
    assert (mel - exact.mel).std() < 0.05 * exact.mel.std()
