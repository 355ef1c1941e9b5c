"""A flow with an engine in its solver makes the mel that the flow makes, in every way of asking for it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, FlowState, load_flow
from lighttts.models.streaming import TAIL, Window
from lighttts.tensorrt.backend import WHOLE
from lighttts.tensorrt.export import CONDITIONS, VELOCITY, _quiet
from lighttts.tensorrt.solver import TensorRTSolver
from lighttts.tensorrt.velocity import WholeVelocity

from .onnx_session import OnnxSession


class WholeWindow(Window):
    """One that the exporter can follow."""

    def lead(self, first: int, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :TAIL]), x], dim=1)


class Upstream(nn.Module):
    """The estimator with the inputs upstream exports, and no mask but that of padding."""

    def __init__(self, flow: CausalMaskedDiffWithXvec) -> None:
        super().__init__()
        self.estimator = flow.decoder.estimator

    def forward(self, x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        hidden = (1 - mask[:, None]) * -1e4
        time = self.estimator.time_mlp(t)
        x, mu, cond = (part.transpose(1, 2) for part in (x, mu, cond))
        out: Tensor = self.estimator(x, mu, spks, cond, time, WholeWindow(hidden)).transpose(1, 2)
        return out * mask


@pytest.fixture(scope="session")
def whole(flow) -> WholeVelocity:
    """What upstream publishes: a batch of two, time free."""
    frames, graph = torch.ones(2, 80, 60), io.BytesIO()
    example = (frames, torch.ones(2, 1, 60), frames, torch.ones(2), torch.ones(2, 80), frames)
    free = {name: {2: "seq_len"} for name in ("x", "mask", "mu", "cond", VELOCITY)}
    names = {"input_names": list(CONDITIONS), "output_names": [VELOCITY], "dynamic_axes": free}
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        torch.onnx.export(Upstream(flow).eval(), example, graph, opset_version=18, dynamo=False, **names)
    return WholeVelocity(OnnxSession(graph.getvalue()), 2, WHOLE)


@pytest.fixture
def ours(directory, cached, whole) -> CausalMaskedDiffWithXvec:
    flow = load_flow(directory)
    flow.decoder = TensorRTSolver(flow.decoder, cached, whole)
    return flow


@pytest.fixture
def unused(monkeypatch) -> None:
    """No computation may fall back to torch."""

    def solve(*_: object) -> Tensor:
        raise AssertionError("the estimator in torch was used")

    monkeypatch.setattr(CausalConditionalCFM, "solve", solve)


def all_tokens(golden: dict[str, Tensor], count: int) -> Tensor:
    return torch.cat([golden["flow.prompt_token"][0], golden["flow.token"][0, :count]])


def start(flow: CausalMaskedDiffWithXvec, golden: dict[str, Tensor]) -> FlowState:
    return flow.start(golden["flow.embedding"][0], golden["flow.prompt_feat"][0])


def advance(flow: CausalMaskedDiffWithXvec, golden: dict[str, Tensor], lengths: list[list[int]]) -> list[Tensor]:
    """The mel of several requests whose hops, in tokens, are `lengths`; hop i of all of them in one batch."""
    tokens = all_tokens(golden, 150)
    states: list[FlowState | None] = [start(flow, golden) for _ in lengths]
    mels: list[list[Tensor]] = [[] for _ in lengths]
    for turn in range(max(map(len, lengths))):
        here = [index for index, hops in enumerate(lengths) if turn < len(hops)]
        hops = []
        for index in here:
            first, count = sum(lengths[index][:turn]), lengths[index][turn]
            final = turn == len(lengths[index]) - 1
            given = tokens[first : first + count + (0 if final else 3)]
            hops.append(FlowHop(states[index], given, final))
        for index, result in zip(here, flow.advance(hops), strict=True):
            mels[index].append(result.mel)
            states[index] = result.state
    return [torch.cat(parts) for parts in mels]


@pytest.mark.parametrize(
    "lengths",
    [[[75, 25, 30]], [[75, 50], [25, 25, 25]], [[50, 25, 7], [50, 25, 25], [100, 3]]],
    ids=["one stream", "two of different hops", "three that end apart"],
)
def test_streams_have_the_mel_of_torch(flow, ours, golden, lengths, monkeypatch) -> None:
    expected = advance(flow, golden, lengths)
    monkeypatch.setattr(CausalConditionalCFM, "solve", None)
    for mel, reference in zip(advance(ours, golden, lengths), expected, strict=True):
        assert (mel - reference).abs().max() < 1e-4


@pytest.mark.usefixtures("unused")
def test_the_streamed_mel_is_the_reference_s(ours, golden) -> None:
    (result,) = ours.advance([FlowHop(start(ours, golden), all_tokens(golden, 60), final=True)])
    mel = result.mel[golden["flow.prompt_feat"].size(1) :].T
    reference = golden["flow.mel_stream_final"][0]
    assert (mel - reference).abs().max() < 1e-3 * reference.std()


@pytest.mark.usefixtures("unused")
def test_the_mel_of_the_published_graph_is_the_reference_s_unmasked_one(ours, golden) -> None:
    (result,) = ours.advance([FlowHop(start(ours, golden), all_tokens(golden, 60), final=True)], chunked=False)
    mel = result.mel[golden["flow.prompt_feat"].size(1) :].T
    reference = golden["flow.mel_full"][0]
    assert (mel - reference).abs().max() < 1e-3 * reference.std()


def test_requests_of_different_lengths_share_the_published_graph_s_turns(flow, ours, golden, monkeypatch) -> None:
    lengths = (100, 61, 80)
    hops = [FlowHop(start(flow, golden), all_tokens(golden, 60)[:length], final=True) for length in lengths]
    expected = flow.advance(hops, chunked=False)
    monkeypatch.setattr(CausalConditionalCFM, "solve", None)
    for ours_, reference in zip(ours.advance(hops, chunked=False), expected, strict=True):
        assert (ours_.mel - reference.mel).abs().max() < 1e-4


def test_a_batch_that_no_engine_holds_is_solved_in_torch(directory, flow, golden, cached, session) -> None:
    ours = load_flow(directory)
    ours.decoder = TensorRTSolver(ours.decoder, cached, None)
    hops = [FlowHop(start(ours, golden), all_tokens(golden, 60), final=True)]
    (expected,) = flow.advance(hops, chunked=False)
    (result,) = ours.advance(hops, chunked=False)
    assert torch.equal(result.mel, expected.mel)
    many = [FlowHop(start(ours, golden), all_tokens(golden, 60)[:28], final=False)] * 5
    for result, expected in zip(ours.advance(many), flow.advance(many), strict=True):
        assert torch.equal(result.mel, expected.mel)


def test_nothing_is_copied_from_the_flow(flow, cached) -> None:
    solver = TensorRTSolver(flow.decoder, cached, None)
    assert solver.estimator is flow.decoder.estimator
    assert solver.noise.data_ptr() == flow.decoder.noise.data_ptr()


def test_the_published_graph_takes_odd_rows_by_repeating_the_last(flow, whole) -> None:
    torch.manual_seed(0)
    x, mu, prompt = torch.randn(3, 3, 70, 80)
    speaker, t, mask = torch.randn(3, 80), torch.rand(3), torch.ones(3, 70)
    out = whole.velocity(x, mu, speaker, prompt, t, mask)
    estimator = flow.decoder.estimator
    expected = estimator(x, mu, speaker, prompt, estimator.time_mlp(t), Window(None))
    assert (out - expected).abs().max() < 1e-5
