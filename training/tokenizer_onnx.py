"""The speech tokenizer as an ONNX graph with the published model's names: `feats` [B, 128, T] float32 and
`feats_length` [B] int32 -> `indices` [B, ceil(T / 4)] int32. Weights are stored in half precision, computing is in
single."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from torch import Tensor

from training.onnx_graph import Graph
from training.tokenizer import BANDS, Block, Encoder


class _Graph(Graph):
    """With the encoder's own operations."""

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Mul", x, self.constant(np.float32(1 / math.sqrt(2)))))
        return self.op(
            "Mul", self.op("Mul", x, self.op("Add", erf, self.constant(np.float32(1)))), self.constant(np.float32(0.5))
        )

    def mask(self, x: str, axis: int, lengths: str, extra: int) -> str:
        """`x` with zeros from each row's length on; `extra` is the other axis after the batch's."""
        size = self.op("Gather", self.op("Shape", x), self.constant(np.int64(axis)), axis=0)
        at = self.op("Range", self.constant(np.int64(0)), size, self.constant(np.int64(1)))
        inside = self.op("Less", at, self.op("Unsqueeze", lengths, self.constant(np.array([1], np.int64))))
        wide = self.op("Unsqueeze", inside, self.constant(np.array([extra], np.int64)))
        return self.op("Mul", x, self.op("Cast", wide, to=TensorProto.FLOAT))

    def halved(self, lengths: str) -> str:
        one, two = self.constant(np.int64(1)), self.constant(np.int64(2))
        return self.op("Div", self.op("Add", lengths, one), two)

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(weight.T)), self.weight(bias))

    def block(self, x: str, block: Block) -> str:
        y = self.op("LayerNormalization", x, self.weight(block.norm.weight), self.weight(block.norm.bias), axis=-1)
        y = self.op("Transpose", y, perm=[0, 2, 1])
        assert block.conv.bias is not None
        pad = int(block.conv.padding[0])
        y = self.op("Conv", y, self.weight(block.conv.weight), self.weight(block.conv.bias), pads=[pad, pad])
        y = self.op("Transpose", self.gelu(y), perm=[0, 2, 1])
        return self.op("Add", x, self.linear(y, block.out.weight, block.out.bias))


def _quantised_index(graph: _Graph, z: str, encoder: Encoder) -> str:
    levels = encoder.levels.cpu().numpy().astype(np.float32)
    half = (levels - 1) / 2
    base = np.concatenate([np.ones(1), np.cumprod(levels)[:-1]]).astype(np.float32)
    digits = graph.op("Round", graph.op("Mul", graph.op("Tanh", z), graph.constant(half)))
    weighted = graph.op("Mul", graph.op("Add", digits, graph.constant(half)), graph.constant(base))
    total = graph.op("ReduceSum", weighted, graph.constant(np.array([-1], np.int64)), keepdims=0)
    return graph.op("Cast", total, to=TensorProto.INT32, output="indices")


def write_onnx(encoder: Encoder, path: Path) -> None:
    """Write the encoder to `path`."""
    graph = _Graph()
    lengths = graph.op("Cast", "feats_length", to=TensorProto.INT64)
    x = graph.mask("feats", 2, lengths, extra=1)
    for conv in (encoder.entry, encoder.halve):
        assert conv.bias is not None
        x = graph.gelu(
            graph.op("Conv", x, graph.weight(conv.weight), graph.weight(conv.bias), pads=[2, 2], strides=[2])
        )
        lengths = graph.halved(lengths)
        x = graph.mask(x, 2, lengths, extra=1)
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = graph.mask(graph.block(x, block), 1, lengths, extra=2)
    norm = encoder.norm
    x = graph.op("LayerNormalization", x, graph.weight(norm.weight), graph.weight(norm.bias), axis=-1)
    _quantised_index(graph, graph.linear(x, encoder.project.weight, encoder.project.bias), encoder)
    sources = [
        helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", BANDS, "T"]),
        helper.make_tensor_value_info("feats_length", TensorProto.INT32, ["B"]),
    ]
    target = helper.make_tensor_value_info("indices", TensorProto.INT32, ["B", "tokens"])
    graph.save(path, "speech_tokenizer", sources, target)
