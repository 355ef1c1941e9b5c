"""ONNX graphs written operation by operation: networks ship without their training code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

OPSET = 17
IR_VERSION = 8


class Graph:
    """Nodes and weights of a graph under construction; each method adds to it and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def weight(self, value: Tensor) -> str:
        """A weight stored in half precision and computed with in single."""
        return self.op("Cast", self.constant(value.detach().cpu().half().numpy()), to=TensorProto.FLOAT)

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: int | float | list[int]) -> str:
        name = output or f"x{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def save(self, path: Path, name: str, sources: Sequence[ValueInfoProto], target: ValueInfoProto) -> None:
        """Check the graph and write it to `path`."""
        made = helper.make_graph(self.nodes, name, sources, [target], self.weights)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, path)
