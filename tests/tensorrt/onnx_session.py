"""A Session on onnxruntime, which stands where the engine does."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime
import torch
from torch import Tensor


class OnnxSession:
    """Runs an ONNX graph on the CPU."""

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        assert all(tensor.is_contiguous() for tensor in (*inputs.values(), *outputs.values()))
        results = self.session.run(list(outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        for tensor, result in zip(outputs.values(), results, strict=True):
            assert tensor.shape == result.shape
            tensor.copy_(torch.from_numpy(result))

    @property
    def inputs(self) -> dict[str, list[int | str]]:
        return {entry.name: entry.shape for entry in self.session.get_inputs()}

    @property
    def outputs(self) -> dict[str, list[int | str]]:
        return {entry.name: entry.shape for entry in self.session.get_outputs()}
