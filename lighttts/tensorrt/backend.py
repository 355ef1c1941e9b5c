"""The estimator through TensorRT: what `decode.engine: tensorrt` switches on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lighttts import logs
from lighttts.errors import ConfigError, MissingDependency, ModelError
from lighttts.models.cfm import GUIDANCE_HALVES
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, Flow
from lighttts.models.weights import fingerprint
from lighttts.tensorrt.builder import Profile, Span, build_plan
from lighttts.tensorrt.cache import EngineCache, EngineKey, default_folder
from lighttts.tensorrt.export import EstimatorShape, export_estimator, graph_revision
from lighttts.tensorrt.library import WANTED, TensorRT, find_library
from lighttts.tensorrt.session import TensorRTSession
from lighttts.tensorrt.solver import TensorRTSolver
from lighttts.tensorrt.velocity import CachedVelocity, WholeVelocity

PUBLISHED = "flow.decoder.estimator.fp32.onnx"
"""The estimator as upstream publishes it: in single precision, without state."""
WHOLE = Profile(rows=Span(2, 2, 16), time=Span(4, 500, 3000))
"""Sizes of the published graph: upstream's own (a batch of two, as it is exported, is all that it takes)."""
_log = logs.get_logger()


HOPS = 32
"""Hops in one call. What is computed together beyond that takes several calls."""


def cached_profile(chunk: int, hops: int) -> Profile:
    """Sizes for up to `hops` hops a call, both guidance halves of each; hops of 8 chunks, 40 chunks of past."""
    rows = Span(GUIDANCE_HALVES, GUIDANCE_HALVES * max(1, hops // 4), GUIDANCE_HALVES * hops)
    return Profile(rows, time=Span(1, chunk, 8 * chunk), past=Span(0, 8 * chunk, 40 * chunk))


@dataclass(frozen=True)
class Backend:
    """The library, a GPU and the folder of engines."""

    library: TensorRT
    device: torch.device
    cache: EngineCache

    @classmethod
    def open(cls, device: torch.device, folder: Path) -> Backend:
        """Raises `MissingDependency` without the library, `ConfigError` without a GPU."""
        library = find_library()
        if library is None:
            raise MissingDependency(f"the Python package tensorrt is not installed: {WANTED}")
        if device.type != "cuda":
            raise ConfigError("TensorRT needs an NVIDIA GPU, and model.device is none")
        return cls(library, device, EngineCache(folder))

    def cached(self, directory: ModelDirectory, flow: CausalMaskedDiffWithXvec, hops: int = HOPS) -> CachedVelocity:
        """The estimator of `flow`, of `directory`, in its dtype, for `hops` a call; built if it is not in the cache."""
        estimator = flow.decoder.estimator
        profile = cached_profile(estimator.config.chunk, hops)
        model = f"{fingerprint(directory.path('flow.pt'))} {directory.config_hash}"
        key = self._key(model, graph_revision(), flow.dtype, profile)
        session = self._session(key, lambda: export_estimator(estimator))
        return CachedVelocity(session, EstimatorShape.of(estimator), flow.dtype, profile)

    def published(self, directory: ModelDirectory) -> WholeVelocity | None:
        """The estimator of the published graph in `directory`, if that holds one; built if it is not in the cache."""
        path = directory.root / PUBLISHED
        if not path.is_file():
            return None
        key = self._key(fingerprint(path), "published", torch.float32, WHOLE)
        session = self._session(key, path.read_bytes)
        rows = session.shape("x")[0]
        return WholeVelocity(session, None if rows < 0 else rows, WHOLE)

    def _key(self, model: str, graph: str, dtype: torch.dtype, profile: Profile) -> EngineKey:
        gpu = torch.cuda.get_device_properties(self.device)
        return EngineKey(
            model=model,
            graph=graph,
            dtype=str(dtype),
            profile=profile,
            library=self.library.__name__,
            version=self.library.__version__,
            gpu=gpu.name,
            capability=(gpu.major, gpu.minor),
        )

    def _session(self, key: EngineKey, graph: Callable[[], bytes]) -> TensorRTSession:
        plan = self.cache.load(key)
        if plan is not None:
            try:
                return TensorRTSession(self.library, plan, self.device)
            except ModelError as error:
                _log.warning("a TensorRT engine is built anew", why=error.text, path=str(self.cache.path(key)))
        _log.info("a TensorRT engine is being built, which takes minutes", gpu=key.gpu, dtype=key.dtype)
        began = time.monotonic()
        with torch.cuda.device(self.device):
            plan = build_plan(self.library, graph(), key.profile)
        path = self.cache.save(key, plan)
        _log.info("TensorRT engine built", seconds=round(time.monotonic() - began, 1), path=str(path), bytes=len(plan))
        return TensorRTSession(self.library, plan, self.device)


def exportable(flow: Flow) -> CausalMaskedDiffWithXvec:
    """`flow`, whose estimator can be exported. Raises `ConfigError` for CosyVoice3's, which cannot."""
    if not isinstance(flow, CausalMaskedDiffWithXvec):
        raise ConfigError("TensorRT runs CosyVoice2's estimator only, and model.directory holds a CosyVoice3")
    return flow


def use_tensorrt(flow: Flow, directory: ModelDirectory, folder: Path | None, hops: int = HOPS) -> CachedVelocity | None:
    """Have `flow`, of `directory` and on its GPU, solve with TensorRT; engines not in `folder` are built first.

    `folder`: None for `default_folder`; `hops`: most in one call. The answer is what a `TensorRTFlowBatch` takes.
    Where TensorRT or a GPU is missing, or the flow is none for it, it is None, the flow stays as it is, and one
    warning says why, what to install, and that the default engine is used. Raises `ModelError` if an engine cannot be
    built, `ConfigError` if it cannot be kept.
    """
    try:
        unet = exportable(flow)
        backend = Backend.open(flow.device, folder or default_folder())
    except (MissingDependency, ConfigError) as error:
        _log.warning("decode.engine is tensorrt, but the default engine is used", why=error.text)
        return None
    cached = backend.cached(directory, unet, hops)
    unet.decoder = TensorRTSolver(unet.decoder, cached, backend.published(directory))
    return cached
