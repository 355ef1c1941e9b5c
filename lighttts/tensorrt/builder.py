"""Engines from ONNX graphs: which sizes they take, and the build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lighttts.errors import ModelError
from lighttts.tensorrt.library import BuilderConfig, TensorRT, make_logger


@dataclass(frozen=True)
class Span:
    """Sizes of a free axis: it must hold from `least` to `most`, and is tuned for `usual`."""

    least: int
    usual: int
    most: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.least, self.usual, self.most

    def holds(self, size: int) -> bool:
        return self.least <= size <= self.most


@dataclass(frozen=True)
class Profile:
    """Sizes an engine takes. `rows`: of the batch, guidance halves counted; `time`, `past`: mel frames."""

    rows: Span
    time: Span
    past: Span = Span(0, 0, 0)

    def holds(self, rows: int, time: int, past: int) -> bool:
        return self.rows.holds(rows) and self.time.holds(time) and self.past.holds(past)

    def shapes(self, name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Least, usual and greatest shape of the input `name`, whose free axes are -1 in `shape`."""
        return [
            tuple(self._size(name, axis, step) if size < 0 else size for axis, size in enumerate(shape))
            for step in range(3)
        ]

    def _size(self, name: str, axis: int, step: int) -> int:
        rows, time, past = self.rows.sizes[step], self.time.sizes[step], self.past.sizes[step]
        if axis == 0:
            return rows
        if name == "mask":
            return past + time
        return past if name.startswith("past.") else time


def build_plan(
    library: TensorRT,
    graph: bytes,
    profile: Profile,
    configure: Callable[[BuilderConfig], None] = lambda config: None,
) -> bytes:
    """The serialised engine of an ONNX graph, tuned for this machine's GPU. Takes minutes.

    `configure` may change the builder's configuration. Raises `ModelError` with what the parser or the builder says.
    """
    logger = make_logger(library)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ModelError(f"{library.__name__} {library.__version__} cannot read the estimator's graph: {said}")
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        if -1 in tuple(entry.shape):
            shapes.set_shape(entry.name, *profile.shapes(entry.name, tuple(entry.shape)))
    config.add_optimization_profile(shapes)
    # Set by default; what is configured as float32 is to be float32, as in torch.
    config.clear_flag(library.BuilderFlag.TF32)
    configure(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(
            f"{library.__name__} {library.__version__} cannot build the estimator's engine; its log above says why. "
            "Set decode.engine to cuda-graph to do without."
        )
    return bytes(plan)
