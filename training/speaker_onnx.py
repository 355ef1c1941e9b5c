"""The speaker encoder as an ONNX graph with the published model's names: `input` [B, T, 80] -> `output` [B, 192].

Weights are stored in half precision, computing is in single.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from torch import nn

from training.onnx_graph import Graph
from training.speaker_encoder import BANDS, EMBEDDING, Block, SpeakerEncoder


class _Graph(Graph):
    """With the encoder's own operation."""

    def conv(self, x: str, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> str:
        """Relu(norm(conv(x))) with the norm's running statistics folded into the convolution."""
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight, bias = conv.weight * gain[:, None, None], norm.bias - norm.running_mean * gain
        pad, dilation = int(conv.padding[0]), conv.dilation[0]
        y = self.op("Conv", x, self.weight(weight), self.weight(bias), pads=[pad, pad], dilations=[dilation])
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
    deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(np.float32(1e-5))))
    pooled = graph.op("Flatten", graph.op("Concat", mean, deviation, axis=1), axis=1)
    weight, bias = graph.weight(encoder.embed.weight), graph.weight(encoder.embed.bias)
    graph.op("Gemm", pooled, weight, bias, transB=1, output="output")
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "T", BANDS])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", EMBEDDING])
    graph.save(path, "speaker_encoder", [source], target)
