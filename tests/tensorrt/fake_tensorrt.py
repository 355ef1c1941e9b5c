"""Stands in for the module `tensorrt` on a machine without a GPU: its documented classes, as far as they are used.

A "plan" is the graph itself with the profile before it; a context runs it with onnxruntime on the addresses it has.
What the documentation forbids is refused: shapes outside the profile, null addresses, a run with something unset.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

MARK = b"plan\0"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Network:
    graph = b""
    inputs: Sequence[onnx.ValueInfoProto] = ()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> SimpleNamespace:
        entry = self.inputs[index]
        sizes = entry.type.tensor_type.shape.dim
        return SimpleNamespace(name=entry.name, shape=tuple(-1 if dim.dim_param else dim.dim_value for dim in sizes))


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        for small, usual, big in zip(min, opt, max, strict=True):
            assert 0 <= small <= usual <= big
        self.shapes[input] = [list(min), list(opt), list(max)]


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags = {"TF32"}

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Context:
    def __init__(self, module: FakeTensorRT, plan: bytes) -> None:
        self.module = module
        header, graph = plan.removeprefix(MARK).split(b"\0", 1)
        self.profile = json.loads(header)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.types = {entry.name: TYPES[entry.type] for entry in self.session.get_inputs()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if name not in self.types:
            return False
        if name in self.profile:
            least, _, most = self.profile[name]
            if not all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True)):
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        known = name in self.types or name in {entry.name for entry in self.session.get_outputs()}
        if known:
            self.addresses[name] = memory
        return known

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.module.broken or not all(self.addresses.values()) or self.shapes.keys() != self.types.keys():
            return False
        self.module.streams.append(stream_handle)
        feed = {name: self._read(name, self.shapes[name], kind) for name, kind in self.types.items()}
        for entry, result in zip(self.session.get_outputs(), self.session.run(None, feed), strict=True):
            ctypes.memmove(self.addresses[entry.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        return True

    def _read(self, name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), kind).reshape(shape)


class Engine:
    def __init__(self, module: FakeTensorRT, plan: bytes) -> None:
        self.context = Context(module, plan)

    def create_execution_context(self) -> Context:
        return self.context

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (entry,) = (entry for entry in self.context.session.get_inputs() if entry.name == name)
        return tuple(size if isinstance(size, int) else -1 for size in entry.shape)


class FakeTensorRT:
    """The module.

    `built` counts builds, `flags` are those of the last; `streams` holds the stream of each run, `broken` makes runs
    fail, `refuses_build` builds.
    """

    __name__ = "tensorrt"
    ILogger = ILogger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")

    def __init__(self, version: str = "10.14.1") -> None:
        self.__version__ = version
        self.built = 0
        self.streams: list[int] = []
        self.broken = False
        self.refuses_build = False
        self.flags: set[str] = set()

    def Builder(self, logger: ILogger) -> SimpleNamespace:  # noqa: N802
        def create_network(flags: int) -> Network:
            assert flags == 1 << self.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        def build(network: Network, config: Config) -> memoryview | None:
            if self.refuses_build:
                logger.log(Severity.ERROR, "no memory")
                return None
            self.built += 1
            self.flags = config.flags
            (profile,) = config.profiles
            return memoryview(MARK + json.dumps(profile.shapes).encode() + b"\0" + network.graph)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=Config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Network, logger: ILogger) -> SimpleNamespace:  # noqa: N802
        parser = SimpleNamespace(num_errors=0)

        def parse(model: bytes) -> bool:
            try:
                parsed = onnx.load_from_string(model)
                onnx.checker.check_model(parsed)
            except Exception as error:
                said = str(error)
                parser.num_errors, parser.get_error = 1, lambda index: SimpleNamespace(desc=lambda: said)
                return False
            network.graph, network.inputs = model, parsed.graph.input
            return True

        parser.parse = parse
        return parser

    def Runtime(self, logger: ILogger) -> SimpleNamespace:  # noqa: N802
        def deserialize(plan: bytes) -> Engine | None:
            if not plan.startswith(MARK):
                logger.log(Severity.ERROR, "not a plan")
                return None
            return Engine(self, plan)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)
