"""Decode steps and prefill on a GPU: all requests in one batch, as CUDA graphs, read back one step later.

A graph takes a number of rows and finds the slots of the rows in a tensor, so a step costs by the requests that run and
by their own lengths. Rows that a graph has too many belong to an idle slot behind those of the requests. Everything is
launched on one stream: a slot given anew is prefilled after the steps already launched for the request before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lighttts.engine import llm_state
from lighttts.engine.capture import Captured
from lighttts.engine.kv_cache import KVCache
from lighttts.engine.llm_ops import TILE, LLMOps, TorchOps
from lighttts.engine.llm_steps import Drawn, Piece
from lighttts.models.llm import SpeechLM
from lighttts.models.qwen2 import Layer

DECODE_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Rows of the graphs of a decode step; with more slots than that, there is one every `MORE_ROWS` too."""
MORE_ROWS = 128
PREFILL_ROWS = (128, 256, 512, 1024, 2048)
"""Rows of the graphs of a prefill."""


class BatchedSteps:
    lag = 1

    def __init__(self, model: SpeechLM, slots: int, max_length: int, prefill_tokens: int) -> None:
        self._model = model
        self._idle = slots
        self._decode_rows = decode_rows(slots)
        self._prefill_rows = prefill_rows(prefill_tokens)
        self.longest = self._prefill_rows[-1]
        device = model.device
        self._cache = KVCache(model.config, slots + 1, max_length, device, model.dtype)
        self.ops: LLMOps = _ops(model, self._cache)
        self._embedding = llm_state.input_table(model, slots)
        self._state = torch.zeros((slots + 1, llm_state.columns(model)), dtype=torch.int64, device=device)
        self._slots = torch.full((slots,), slots, device=device)
        self._listed: list[int] = []  # what `_slots` begins with
        self._drawn = torch.zeros(slots, dtype=torch.int64, device=device)
        self._packed = torch.tensor([[0, slots, 0]] * self.longest, device=device)
        self._decodes = Captured(self.run_decode, device)
        self._prefills = Captured(self.run_prefill, device)
        # Triton launches on the thread's current device, whatever device the tensors are on.
        self._on_device = torch.cuda.device(device if device.type == "cuda" else -1)
        with self._on_device:
            # The largest first: the memory it takes serves all others.
            for rows in reversed(self._decode_rows):
                self._decodes.prepare(rows)
            for rows in reversed(self._prefill_rows):
                self._prefills.prepare(rows)

    def cost(self, positions: int) -> int:
        return -(-positions // TILE) * TILE

    def prefill(self, pieces: Sequence[Piece]) -> None:
        if any(len(piece.ids) for piece in pieces):
            self._prefill(pieces)
        states = [(piece.slot, piece.state) for piece in pieces if piece.state is not None]
        begun = [(slot, *llm_state.settled(self._model, self._embedding, slot, state)) for slot, state in states]
        if begun:
            self._begin(np.array(begun, np.int64))

    def _prefill(self, pieces: Sequence[Piece]) -> None:
        total = sum(self.cost(len(piece.ids)) for piece in pieces)
        rows = next(rows for rows in self._prefill_rows if rows >= total)
        packed = np.zeros((rows, 3), np.int64)
        packed[:, 1] = self._idle
        at = 0
        for piece in pieces:
            count = len(piece.ids)
            part = packed[at : at + count]
            part[:, 0], part[:, 1] = piece.ids, piece.slot
            part[:, 2] = np.arange(piece.start, piece.start + count)
            at += self.cost(count)
        self._upload(self._packed[:rows], packed)
        with self._on_device:
            self._prefills.run(rows)

    def _begin(self, states: npt.NDArray[np.int64]) -> None:
        """Sets the state of slots; `states` [slots, 1 + columns] has the slot before each row."""
        uploaded = torch.empty(states.shape, dtype=torch.int64, device=self._state.device)
        self._upload(uploaded, states)
        self._state[uploaded[:, 0]] = uploaded[:, 1:]

    def decode(self, rows: Sequence[tuple[int, int]]) -> Drawn:
        count = next(count for count in self._decode_rows if count >= len(rows))
        listed = [slot for slot, _ in rows] + [self._idle] * (count - len(rows))
        if listed != self._listed:
            self._upload(self._slots[:count], np.array(listed, np.int64))
            self._listed = listed
        with self._on_device:
            self._decodes.run(count)
            return _read_later(self._drawn[: len(rows)])

    def rest(self) -> None:
        """A GPU's memory stays reserved."""

    def run_decode(self, rows: int) -> None:
        """Advances the slots that the first `rows` of `_slots` name, launched piece by piece; ids go to `_drawn`."""
        slots, body = self._slots[:rows], self._model.body
        x, positions = self.ops.embed(self._state, slots, self._embedding)
        attend = partial(self.ops.attend, slots=slots, positions=positions)
        self._run_layers(x, attend, len(body.layers))
        logits = self.ops.norm_linear(x, body.norm.weight, self._model.llm_decoder)
        self.ops.draw(logits, slots, self._state, self._drawn[:rows])

    def run_prefill(self, rows: int) -> None:
        """Prefills the first `rows` of `_packed`. Of the last layer only keys and values are needed."""
        ids, slots, positions = self._packed[:rows].T.contiguous()
        x = self._model.embed(ids)
        attend = partial(self.ops.attend_tiles, slots=slots, positions=positions)
        last = len(self._model.body.layers) - 1
        self._run_layers(x, attend, last)
        layer = self._layer(last)
        qkv = self.ops.norm_linear(x, layer.input_layernorm.weight, layer.self_attn.qkv_proj)
        self.ops.keep(last, qkv, slots, positions)

    def _run_layers(self, x: Tensor, attend: Callable[[int, Tensor], Tensor], count: int) -> None:
        """Puts `x` [rows, width] through the first `count` layers in place."""
        ops = self.ops
        for index in range(count):
            layer = self._layer(index)
            qkv = ops.norm_linear(x, layer.input_layernorm.weight, layer.self_attn.qkv_proj)
            ops.add_linear(x, attend(index, qkv), layer.self_attn.o_proj)
            gated = ops.norm_gate(x, layer.post_attention_layernorm.weight, layer.mlp.gate_up_proj)
            ops.add_linear(x, gated, layer.mlp.down_proj)

    def _layer(self, index: int) -> Layer:
        layer = self._model.body.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def _upload(self, target: Tensor, values: npt.NDArray[np.int64]) -> None:
        """Without waiting: the copy takes its turn among what is launched."""
        source = torch.from_numpy(values)
        target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


def decode_rows(slots: int) -> list[int]:
    """Numbers of rows for which a decode step is captured, ascending; the last is `slots`."""
    more = range(DECODE_ROWS[-1] + MORE_ROWS, slots, MORE_ROWS)
    return [rows for rows in (*DECODE_ROWS, *more) if rows < slots] + [slots]


def prefill_rows(tokens: int) -> list[int]:
    """Numbers of rows for which a prefill is captured, ascending; the last holds `tokens` if a graph can."""
    most = min(-(-tokens // TILE) * TILE, PREFILL_ROWS[-1])
    return [rows for rows in PREFILL_ROWS if rows < most] + [most]


def _ops(model: SpeechLM, cache: KVCache) -> LLMOps:
    if model.device.type != "cuda":
        return TorchOps(model, cache)
    # Triton comes with torch for GPUs only.
    from lighttts.kernels.llm_ops import TritonOps

    return TritonOps(model, cache)


def _read_later(drawn: Tensor) -> Drawn:
    """Copies ids while the next step runs."""
    if not drawn.is_cuda:
        now: list[int] = drawn.tolist()
        return lambda: now
    copy = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
    copy.copy_(drawn, non_blocking=True)
    ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    ready.record()

    def read() -> list[int]:
        ready.synchronize()
        ids: list[int] = copy.tolist()
        return ids

    return read
