"""The tiny model's flow and its exported estimator, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, load_flow
from lighttts.tensorrt.builder import Profile, Span
from lighttts.tensorrt.export import EstimatorShape, export_estimator
from lighttts.tensorrt.velocity import CachedVelocity

from .onnx_session import OnnxSession

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"


@pytest.fixture(scope="session")
def directory() -> ModelDirectory:
    return ModelDirectory.open(TINY)


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="session")
def flow(directory: ModelDirectory) -> CausalMaskedDiffWithXvec:
    torch.set_num_threads(1)
    return load_flow(directory)


@pytest.fixture(scope="session")
def session(flow: CausalMaskedDiffWithXvec) -> OnnxSession:
    return OnnxSession(export_estimator(flow.decoder.estimator))


@pytest.fixture(scope="session")
def cached(flow: CausalMaskedDiffWithXvec, session: OnnxSession) -> CachedVelocity:
    profile = Profile(rows=Span(1, 2, 8), time=Span(1, 50, 400), past=Span(0, 50, 400))
    return CachedVelocity(session, EstimatorShape.of(flow.decoder.estimator), torch.float32, profile)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
