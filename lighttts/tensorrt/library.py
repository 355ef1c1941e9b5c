"""The part of TensorRT's Python API that is used here, as documented for versions 10 and 11.

Networks are strongly typed, which version 10 offers and version 11 always does: precisions are those of the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from lighttts import logs

NAME = "tensorrt"
WANTED = "pip install tensorrt-cu13 (or tensorrt-cu12, as the driver asks for)"
_log = logs.get_logger()


class HostMemory(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class Tensor(Protocol):
    """`ITensor`: a network's input or output; a free axis has the size -1."""

    name: str
    shape: Sequence[int]


class Network(Protocol):
    """`INetworkDefinition`"""

    num_inputs: int

    def get_input(self, index: int) -> Tensor: ...


class OptimizationProfile(Protocol):
    """`IOptimizationProfile`"""

    # Upstream's names of the parameters; they are passed by position.
    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class BuilderConfig(Protocol):
    """`IBuilderConfig`"""

    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...
    def clear_flag(self, flag: int) -> None: ...


class Builder(Protocol):
    """`Builder`"""

    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class ParserError(Protocol):
    def desc(self) -> str: ...


class Parser(Protocol):
    """`OnnxParser`"""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class Context(Protocol):
    """`IExecutionContext`"""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """`ICudaEngine`"""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def create_execution_context(self) -> Context | None: ...


class Runtime(Protocol):
    """`Runtime`"""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


class CreationFlags(Protocol):
    STRONGLY_TYPED: int


class BuilderFlags(Protocol):
    TF32: int


class TensorRT(Protocol):
    """The module."""

    __name__: str
    __version__: str
    ILogger: type
    NetworkDefinitionCreationFlag: CreationFlags
    BuilderFlag: BuilderFlags

    def Builder(self, logger: object) -> Builder: ...  # noqa: N802
    def OnnxParser(self, network: Network, logger: object) -> Parser: ...  # noqa: N802
    def Runtime(self, logger: object) -> Runtime: ...  # noqa: N802


def find_library(name: str = NAME) -> TensorRT | None:
    """The module, or None if it or a library it needs is not installed."""
    try:
        return cast(TensorRT, importlib.import_module(name))
    except (ImportError, OSError):
        return None


def make_logger(library: TensorRT) -> object:
    """A logger for the library that hands its warnings and errors to ours."""
    severity = library.ILogger.Severity  # type: ignore[attr-defined]
    methods = {severity.WARNING: _log.warning, severity.ERROR: _log.error, severity.INTERNAL_ERROR: _log.error}

    def log(_self: object, level: object, text: str) -> None:
        if level in methods:
            methods[level]("TensorRT reports", text=text)

    def start(self: object) -> None:
        library.ILogger.__init__(self)  # type: ignore[misc]

    return type("Log", (library.ILogger,), {"__init__": start, "log": log})()
