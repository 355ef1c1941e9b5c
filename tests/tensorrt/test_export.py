"""The exported estimator is the estimator: any batch, any time, any past, and hop by hop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lighttts.errors import InternalError
from lighttts.models.flow import CausalMaskedDiffWithXvec, load_flow
from lighttts.models.streaming import StreamBatch, StreamState, StreamWindow, Window, chunk_mask
from lighttts.tensorrt.export import CONDITIONS, EstimatorShape, export_estimator
from lighttts.tensorrt.velocity import CachedVelocity, Velocity

from .onnx_session import OnnxSession

CHUNK, MEL = 50, 80
CPU = torch.device("cpu")


def conditions(rows: int, time: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    frames = {name: torch.randn(rows, time, MEL) for name in ("x", "mu", "prompt")}
    return {**frames, "speaker": torch.randn(rows, MEL), "t": torch.rand(rows)}


def in_torch(flow: CausalMaskedDiffWithXvec, inputs: dict[str, Tensor], window: Window) -> Tensor:
    estimator = flow.decoder.estimator
    time = estimator.time_mlp(inputs["t"])
    out: Tensor = estimator(inputs["x"], inputs["mu"], inputs["speaker"], inputs["prompt"], time, window)
    return out


def test_the_graph_has_upstream_s_inputs_and_the_state_beside_them(session: OnnxSession) -> None:
    inputs, outputs = session.inputs, session.outputs
    assert list(inputs)[:6] == list(CONDITIONS) == ["x", "mask", "mu", "t", "spks", "cond"]
    assert inputs["x"] == inputs["mu"] == inputs["cond"] == ["rows", MEL, "time"]
    assert inputs["mask"] == ["rows", 1, "columns"]
    assert inputs["t"] == ["rows"]
    assert inputs["spks"] == ["rows", MEL]
    assert inputs["past.0.keys"] == inputs["past.7.values"] == ["rows", "past", 32]
    assert list(outputs)[:2] == ["estimator_out", "new_tails"]
    assert outputs["estimator_out"] == ["rows", MEL, "time"]


def test_the_first_frames_give_the_reference_s_velocity(cached, golden) -> None:
    x, mu, cond = (golden[f"est.{name}"].mT for name in ("x", "mu", "cond"))
    past, tails = cached.empty_past(len(x), CPU)
    mask = torch.ones(x.shape[:2])
    out = cached.velocity(x, mu, golden["est.spks"], cond, golden["est.t"], mask, past, tails).velocity
    reference = golden["est.out_stream"]
    assert (out.mT - reference).abs().max() < 1e-4 * reference.std()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hops=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3 * CHUNK)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_batch_time_and_past_give_what_torch_gives(flow, cached, hops, seed) -> None:
    """`hops`: chunks before, and new frames, of each row."""
    lengths, new = CHUNK * torch.tensor([past for past, _ in hops]), torch.tensor([new for _, new in hops])
    rows, past, time = len(hops), int(lengths.max()), int(new.max())
    inputs, shape = conditions(rows, time, seed), cached.shape
    tails = torch.randn(rows, 2, shape.channels)
    cache = torch.randn(shape.layers, 2, rows, past + time, shape.width)
    ends = (new[:, None] + torch.arange(2))[..., None]
    window = StreamWindow(
        chunk_mask(lengths, new, past, time, CHUNK), past, cache.clone(), tails, ends, lengths[:, None]
    )
    expected = in_torch(flow, inputs, window)
    columns = torch.arange(-past, time)
    mask = (columns >= -lengths[:, None]) & (columns < new[:, None])
    out = cached.velocity(**inputs, mask=mask, past_keys_values=cache[..., :past, :], tails=tails)
    assert (out.tails - window.new_tails).abs().max() < 1e-5
    for row, length in enumerate(new):
        assert (out.velocity[row, :length] - expected[row, :length]).abs().max() < 1e-5
        fresh = window.cache[:, :, row, past : past + length]
        assert (out.keys_values[:, :, row, :length] - fresh).abs().max() < 1e-5


def stream(cached: CachedVelocity, inputs: dict[str, Tensor], hops: list[int]) -> Velocity:
    """The velocity of a whole sequence in hops, and the state behind it."""
    rows = len(inputs["x"])
    past, tails = cached.empty_past(rows, CPU)
    out, first = [], 0
    for hop in hops:
        now = {name: value[:, first : first + hop] if value.dim() == 3 else value for name, value in inputs.items()}
        mask = torch.ones(rows, first + hop, dtype=torch.bool)
        velocity, fresh, tails = cached.velocity(**now, mask=mask, past_keys_values=past, tails=tails)
        past = torch.cat([past, fresh], dim=3)
        out.append(velocity)
        first += hop
    return Velocity(torch.cat(out, dim=1), past, tails)


@pytest.mark.parametrize("hops", [[50, 50, 50, 27], [100, 50, 27], [50, 127], [177]])
def test_a_stream_of_hops_is_one_pass(flow, cached, hops) -> None:
    inputs = conditions(2, sum(hops))
    expected = in_torch(flow, inputs, Window.whole(None, sum(hops), CHUNK, CPU))
    assert (stream(cached, inputs, hops).velocity - expected).abs().max() < 1e-5


def test_the_solver_s_mel_hop_by_hop_is_torch_s(flow, cached) -> None:
    decoder, hops = flow.decoder, [100, 50, 30]
    torch.manual_seed(1)
    mu, prompt, speaker = torch.randn(1, sum(hops), MEL), torch.randn(1, sum(hops), MEL), torch.randn(1, MEL)
    states: list[StreamState | None] = [StreamState.start(decoder.shape, CPU, torch.float32)]
    caches = [cached.empty_past(2, CPU) for _ in range(decoder.config.steps)]
    first = 0
    for hop in hops:
        here = slice(first, first + hop)
        batch = StreamBatch(decoder.shape, [state for state in states if state], [hop], [True], CHUNK)
        expected = decoder.solve(mu[:, here], speaker, prompt[:, here], batch)
        states = batch.advanced()
        x = decoder.noise_at([first], hop)
        halves = [torch.cat([part, torch.zeros_like(part)]) for part in (mu[:, here], speaker, prompt[:, here])]
        mask = torch.ones(2, first + hop)
        for step, (past, tails) in enumerate(caches):
            both, t = x.repeat(2, 1, 1), decoder.times[step].expand(2)
            velocity, fresh, tails = cached.velocity(both, *halves, t, mask, past, tails)
            caches[step] = torch.cat([past, fresh], dim=3), tails
            given, free = velocity.chunk(2)
            x = x + decoder.lengths[step] * ((1 + decoder.config.guidance) * given - decoder.config.guidance * free)
        assert (x - expected).abs().max() < 1e-4
        first += hop


def test_half_precision_is_exported_as_half_precision(directory) -> None:
    half = load_flow(directory, dtype=torch.float16)
    shape = EstimatorShape.of(half.decoder.estimator)
    session = OnnxSession(export_estimator(half.decoder.estimator))
    types = {entry.name: entry.type for entry in session.session.get_inputs()}
    assert types.pop("t") == "tensor(float)"
    assert set(types.values()) == {"tensor(float16)"}
    assert len(session.outputs) == 2 + 2 * shape.layers


def test_sizes_that_the_engine_does_not_hold_are_refused(cached) -> None:
    past, tails = cached.empty_past(9, CPU)
    with pytest.raises(InternalError, match="9 rows of 50 frames after 0"):
        cached.velocity(**conditions(9, CHUNK), mask=torch.ones(9, CHUNK), past_keys_values=past, tails=tails)


def test_a_mask_of_other_columns_is_refused(cached) -> None:
    past, tails = cached.empty_past(2, CPU)
    with pytest.raises(InternalError, match="mask"):
        cached.velocity(**conditions(2, CHUNK), mask=torch.ones(2, 49), past_keys_values=past, tails=tails)
