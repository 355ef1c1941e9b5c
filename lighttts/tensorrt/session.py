"""A built engine on torch's tensors and stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from lighttts.errors import InternalError, ModelError
from lighttts.tensorrt.library import TensorRT, make_logger


class Session(Protocol):
    """Something that runs a graph."""

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Fill `outputs` from `inputs`, all contiguous and of the graph's shapes and dtypes."""
        ...


class TensorRTSession:
    """A Session of one engine and one execution context, for one thread.

    The work is put on torch's current stream and not waited for. With the sizes of the call before, a call can be
    captured in a CUDA graph: only a change of sizes makes the library work on the host.
    """

    def __init__(self, library: TensorRT, plan: bytes, device: torch.device) -> None:
        """Raises `ModelError` if `plan` is not an engine of this library and GPU."""
        self.device = device
        self._logger = make_logger(library)
        with torch.cuda.device(device):
            self._runtime = library.Runtime(self._logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            context = None if engine is None else engine.create_execution_context()
        if engine is None or context is None:
            raise ModelError(
                f"{library.__name__} {library.__version__} does not load the estimator's engine; its log says why"
            )
        self._engine, self._context = engine, context
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Stands in for tensors of no elements: an address must not be null.
        self._nothing = torch.zeros(64, device=device)
        self._side: torch.cuda.Stream | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an input or output, free axes as -1."""
        return tuple(self._engine.get_tensor_shape(name))

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        for name, tensor in inputs.items():
            shape = tuple(tensor.shape)
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    raise InternalError(f"the TensorRT engine takes no {name} of the shape {shape}")
                self._shapes[name] = shape
            self._place(name, tensor)
        for name, tensor in outputs.items():
            self._place(name, tensor)
        current = torch.cuda.current_stream(self.device)
        if current.cuda_stream:
            self._enqueue(current)
            return
        # On the default stream the library would wait for the device around each call.
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(current)
        self._enqueue(self._side)
        current.wait_stream(self._side)

    def _place(self, name: str, tensor: Tensor) -> None:
        address = tensor.data_ptr() if tensor.numel() else self._nothing.data_ptr()
        if self._addresses.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise InternalError(f"the TensorRT engine has no input or output {name}")
            self._addresses[name] = address

    def _enqueue(self, stream: torch.cuda.Stream) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise InternalError("the TensorRT engine could not be run; its log says why")
