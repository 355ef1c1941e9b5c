"""The builder, the engine cache and the runner together, over a stand-in for the library and onnxruntime."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import structlog
import torch

from lighttts.errors import InternalError, ModelError
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, load_flow
from lighttts.models.streaming import Window
from lighttts.tensorrt import build
from lighttts.tensorrt.backend import PUBLISHED, Backend, cached_profile, use_tensorrt
from lighttts.tensorrt.builder import build_plan
from lighttts.tensorrt.cache import EngineCache

from .fake_tensorrt import FakeTensorRT
from .test_export import CHUNK, conditions, in_torch

CPU = torch.device("cpu")
STREAM = 7


@pytest.fixture
def fake(monkeypatch) -> FakeTensorRT:
    """The library, on a GPU that there is not: its memory is the CPU's."""
    properties = SimpleNamespace(name="Some GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return FakeTensorRT()


@pytest.fixture
def backend(fake, tmp_path) -> Backend:
    return Backend(fake, CPU, EngineCache(tmp_path))


def test_the_engine_s_velocity_is_the_estimator_s(backend, directory, flow, fake) -> None:
    cached = backend.cached(directory, flow, 2)
    inputs = conditions(4, 2 * CHUNK)
    past, tails = cached.empty_past(4, CPU)
    expected = in_torch(flow, inputs, Window.whole(None, 2 * CHUNK, CHUNK, CPU))
    mask = torch.ones(4, 2 * CHUNK)
    whole = cached.velocity(**inputs, mask=mask, past_keys_values=past, tails=tails)
    assert (whole.velocity - expected).abs().max() < 1e-5
    first = {name: value[:, :CHUNK] if value.dim() == 3 else value for name, value in inputs.items()}
    last = {name: value[:, CHUNK:] if value.dim() == 3 else value for name, value in inputs.items()}
    head = cached.velocity(**first, mask=mask[:, :CHUNK], past_keys_values=past, tails=tails)
    tail = cached.velocity(**last, mask=mask, past_keys_values=head.keys_values, tails=head.tails)
    assert (torch.cat([head.velocity, tail.velocity], dim=1) - expected).abs().max() < 1e-5
    assert fake.streams == [STREAM] * 3


def test_without_a_stream_of_its_own_the_work_goes_to_a_side_stream(
    backend, directory, flow, fake, monkeypatch
) -> None:
    order = []
    side = SimpleNamespace(cuda_stream=9, wait_stream=lambda other: order.append(("side waits for", other.cuda_stream)))
    default = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: order.append(("waits for", other.cuda_stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    cached = backend.cached(directory, flow, 2)
    past, tails = cached.empty_past(2, CPU)
    cached.velocity(**conditions(2, CHUNK), mask=torch.ones(2, CHUNK), past_keys_values=past, tails=tails)
    assert fake.streams == [9]
    assert order == [("side waits for", 0), ("waits for", 9)]


def test_no_precision_is_used_but_the_graph_s(backend, directory, flow, fake) -> None:
    backend.cached(directory, flow, 2)
    assert fake.built == 1
    assert fake.flags == set()


def test_an_engine_is_built_once_for_all_processes(fake, directory, flow, tmp_path) -> None:
    for _ in range(2):
        Backend(fake, CPU, EngineCache(tmp_path)).cached(directory, flow, 2)
    assert fake.built == 1


def test_another_version_or_profile_builds_its_own_engine(fake, directory, flow, tmp_path) -> None:
    Backend(fake, CPU, EngineCache(tmp_path)).cached(directory, flow, 2)
    Backend(fake, CPU, EngineCache(tmp_path)).cached(directory, flow, 4)
    newer = FakeTensorRT("11.4.0")
    Backend(newer, CPU, EngineCache(tmp_path)).cached(directory, flow, 2)
    assert (fake.built, newer.built) == (2, 1)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_engine_that_the_library_does_not_load_is_built_anew(backend, directory, flow, fake) -> None:
    backend.cached(directory, flow, 2)
    (path,) = backend.cache.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with structlog.testing.capture_logs() as logs:
        backend.cached(directory, flow, 2)
    assert fake.built == 2
    assert path.read_bytes() == whole
    assert logs[0]["log_level"] == "warning"


def test_an_intact_file_that_is_no_engine_is_built_anew(backend, directory, flow, fake, monkeypatch) -> None:
    backend.cached(directory, flow, 2)
    load = EngineCache.load
    monkeypatch.setattr(EngineCache, "load", lambda self, key: b"of another GPU" if load(self, key) else None)
    with structlog.testing.capture_logs() as logs:
        backend.cached(directory, flow, 2)
    assert fake.built == 2
    assert [entry["text"] for entry in logs if entry["log_level"] == "error"] == ["not a plan"]


def test_a_graph_that_the_parser_refuses_is_an_error_with_its_words(fake) -> None:
    with pytest.raises(ModelError, match=r"tensorrt 10\.14\.1 cannot read the estimator's graph: .+"):
        build_plan(fake, b"no graph", cached_profile(CHUNK, 1))


def test_a_build_that_fails_is_an_error_and_keeps_nothing(backend, directory, flow, fake) -> None:
    fake.refuses_build = True
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(ModelError, match=r"cannot build.*decode\.engine to cuda-graph"),
    ):
        backend.cached(directory, flow, 2)
    assert "no memory" in [entry.get("text") for entry in logs]
    assert not list(backend.cache.folder.iterdir())


def test_a_run_that_fails_is_an_error(backend, directory, flow, fake) -> None:
    cached = backend.cached(directory, flow, 2)
    past, tails = cached.empty_past(2, CPU)
    fake.broken = True
    with pytest.raises(InternalError, match="could not be run"):
        cached.velocity(**conditions(2, CHUNK), mask=torch.ones(2, CHUNK), past_keys_values=past, tails=tails)


def test_the_profile_is_built_for_what_it_says_it_holds(backend, directory, flow) -> None:
    profile = cached_profile(CHUNK, 2)
    cached = backend.cached(directory, flow, 2)
    rows, time = profile.rows.most, profile.time.most
    past = torch.zeros(cached.shape.layers, 2, rows, profile.past.most, cached.shape.width)
    tails = torch.zeros(rows, 2, cached.shape.channels)
    mask = torch.ones(rows, profile.past.most + time)
    out = cached.velocity(**conditions(rows, time), mask=mask, past_keys_values=past, tails=tails)
    assert out.velocity.isfinite().all()
    assert not profile.holds(rows + 1, time, 0)
    assert not profile.holds(rows, time + 1, 0)
    assert not profile.holds(rows, time, profile.past.most + 1)


def test_a_directory_without_the_published_graph_has_no_whole_velocity(backend, directory) -> None:
    assert not (directory.root / PUBLISHED).exists()
    assert backend.published(directory) is None


@pytest.fixture
def own_flow(directory) -> CausalMaskedDiffWithXvec:
    """One that a test may change."""
    return load_flow(directory)


def test_without_the_library_one_warning_says_what_to_install(monkeypatch, tmp_path, directory, own_flow) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    before = own_flow.decoder
    with structlog.testing.capture_logs() as logs:
        assert use_tensorrt(own_flow, directory, tmp_path, 2) is None
    assert len(logs) == 1
    assert logs[0]["log_level"] == "warning"
    assert "the default engine is used" in logs[0]["event"]
    assert "pip install tensorrt-cu13" in logs[0]["why"]
    assert own_flow.decoder is before


def test_a_library_whose_parts_are_missing_is_not_installed(monkeypatch, tmp_path, directory, own_flow) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with structlog.testing.capture_logs() as logs:
        assert use_tensorrt(own_flow, directory, tmp_path, 2) is None
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_without_a_gpu_one_warning_says_so(monkeypatch, tmp_path, fake, directory, own_flow) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with structlog.testing.capture_logs() as logs:
        assert use_tensorrt(own_flow, directory, tmp_path, 2) is None
    assert [entry["why"] for entry in logs] == ["TensorRT needs an NVIDIA GPU, and model.device is none"]


def test_a_cosyvoice3_keeps_the_default_engine_and_one_warning_says_so(monkeypatch, tmp_path, fake, directory) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    other = ModelDirectory.open(directory.root.parent / "cosyvoice3-tiny")
    flow = load_flow(other)
    with structlog.testing.capture_logs() as logs:
        assert use_tensorrt(flow, other, tmp_path, 2) is None
    assert [entry["why"] for entry in logs] == [
        "TensorRT runs CosyVoice2's estimator only, and model.directory holds a CosyVoice3"
    ]


def test_with_the_library_and_a_gpu_the_flow_solves_with_it(
    monkeypatch, tmp_path, backend, directory, flow, own_flow
) -> None:
    opened = []
    monkeypatch.setattr(Backend, "open", lambda device, folder: opened.append(folder) or backend)
    velocity = use_tensorrt(own_flow, directory, tmp_path / "engines", 2)
    assert velocity is not None
    assert velocity.profile == cached_profile(CHUNK, 2)
    assert opened == [tmp_path / "engines"]
    hop = FlowHop(flow.start(torch.ones(192), torch.zeros(0, 80)), torch.arange(40), final=True)
    (expected,) = flow.advance([hop])
    monkeypatch.setattr(CausalConditionalCFM, "solve", None)
    (result,) = own_flow.advance([hop])
    assert (result.mel - expected.mel).abs().max() < 1e-4


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_logging_as_before")
def test_engines_can_be_built_before_a_worker_starts(monkeypatch, tmp_path, backend, directory, fake, own_flow) -> None:
    monkeypatch.setattr(Backend, "open", lambda device, folder: backend)
    settings = ["--set", "model.device=cpu", "--set", "log.format=json"]
    assert build.main([str(directory.root), *settings]) == 0
    assert fake.built == 1
    assert use_tensorrt(own_flow, directory, None) is not None
    assert fake.built == 1


@pytest.mark.usefixtures("_logging_as_before")
def test_building_without_the_library_says_what_to_install(monkeypatch, directory, capsys) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert build.main([str(directory.root), "--set", "log.format=json"]) == 69
    assert "pip install tensorrt-cu13" in capsys.readouterr().err
