"""The speaker encoder as an ONNX graph with the published model's names: `input` [B, T, 80] -> `output` [B, 192]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from training.speaker_encoder import BANDS, EMBEDDING, Block, SpeakerEncoder

OPSET = 17


class _Graph:
    """Nodes and weights of a graph under construction; each method adds one operation and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, value: Tensor) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().float().numpy()), name))
        return name

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: int | list[int]) -> str:
        name = output or f"x{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def conv(self, x: str, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> str:
        """Relu(norm(conv(x))) with the norm's running statistics folded into the convolution."""
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight, bias = conv.weight * gain[:, None, None], norm.bias - norm.running_mean * gain
        pad, dilation = int(conv.padding[0]), conv.dilation[0]
        y = self.op("Conv", x, self.constant(weight), self.constant(bias), pads=[pad, pad], dilations=[dilation])
        return self.op("Relu", y)


def write_onnx(encoder: SpeakerEncoder, path: Path) -> None:
    """Write the encoder, as evaluated (running statistics), to `path`."""
    graph = _Graph()
    x = graph.op("Transpose", "input", perm=[0, 2, 1])
    x = graph.conv(x, encoder.entry, encoder.entry_norm)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = graph.op("Add", x, graph.conv(x, block.conv, block.norm))
    mean = graph.op("ReduceMean", x, axes=[2], keepdims=1)
    centred = graph.op("Sub", x, mean)
    variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes=[2], keepdims=1)
    deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(torch.tensor(1e-5))))
    pooled = graph.op("Flatten", graph.op("Concat", mean, deviation, axis=1), axis=1)
    weight, bias = graph.constant(encoder.embed.weight), graph.constant(encoder.embed.bias)
    graph.op("Gemm", pooled, weight, bias, transB=1, output="output")
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "T", BANDS])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", EMBEDDING])
    made = helper.make_graph(graph.nodes, "speaker_encoder", [source], [target], graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
