"""What CosyVoice2's and CosyVoice3's flows have in common: speech tokens to mel, in hops or in one pass.

A request advances in hops of whole chunks; each hop computes its own frames only and takes everything earlier from its
`FlowState`. Fed hop by hop, the mel is that of one chunk-masked pass over all tokens up to float rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.flow_config import DiTFlowConfig, FlowConfig
from lighttts.models.streaming import StackShape, StreamBatch, StreamState, Window


@dataclass(frozen=True)
class FlowState:
    """What the flow keeps of one request: the pasts of its stacks, the speaker and the prompt's mel.

    `speaker`: (mel,), projected; `prompt`: (prompt frames, mel); `encoder`: one past for each of the flow's
    `encoder_stacks`, the first of which is at token rate. Immutable.
    """

    speaker: Tensor
    prompt: Tensor
    encoder: tuple[StreamState, ...]
    solver: StreamState

    @property
    def tokens(self) -> int:
        """Finished tokens, those of the prompt included."""
        return self.encoder[0].length

    @property
    def bytes(self) -> int:
        """Memory of the caches."""
        return sum(state.bytes for state in (*self.encoder, self.solver))


@dataclass(frozen=True)
class FlowHop:
    """New tokens of one request. `tokens`: int64 (n,) on the model's device.

    Unless `final`, the last `look_ahead` tokens are context only: they come again at the start of the next hop, and the
    others make a whole number of chunks.
    """

    state: FlowState
    tokens: Tensor
    final: bool


@dataclass(frozen=True)
class FlowResult:
    """`mel`: float32 (2 x tokens of the hop, mel bins), prompt frames included. `state` is None after the last hop."""

    mel: Tensor
    state: FlowState | None


class Flow(nn.Module, ABC):
    """Token embedding, encoder and flow solver. For inference: `start`, then `advance`."""

    config: FlowConfig | DiTFlowConfig
    decoder: CausalConditionalCFM[Any]
    input_embedding: nn.Embedding
    spk_embed_affine_layer: nn.Linear

    @property
    @abstractmethod
    def encoder_stacks(self) -> tuple[tuple[StackShape, int], ...]:
        """Each stack of the encoder, and how many frames it has for a token; the first has one."""

    @abstractmethod
    def features(self, tokens: Tensor, known: Tensor, *windows: Window) -> Tensor:
        """Frame features (rows, 2 tokens, mel) of token ids with look-ahead, int64 (rows, tokens + look_ahead).

        `known`: bool, as `tokens`, False for padding and for look-ahead past the last token; a window for each stack.
        """

    @property
    def device(self) -> torch.device:
        return self.spk_embed_affine_layer.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.spk_embed_affine_layer.weight.dtype

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker embeddings (rows, speaker_size) as the estimator takes them, (rows, mel)."""
        out: Tensor = self.spk_embed_affine_layer(F.normalize(embedding, dim=1))
        return out

    def start(self, embedding: Tensor, prompt: Tensor) -> FlowState:
        """State of a request before its first token, which is the first token of its prompt if it has one.

        `embedding`: (speaker_size,); `prompt`: mel of the prompt (2 x prompt tokens, mel bins), may be empty.
        """
        device, dtype = self.device, self.dtype
        encoder = tuple(StreamState.start(shape, device, dtype) for shape, _ in self.encoder_stacks)
        solver = StreamState.start(self.decoder.shape, device, dtype)
        speaker = self.speaker(embedding.to(device, dtype)[None])[0]
        return FlowState(speaker, prompt.to(device, dtype), encoder, solver)

    def advance(self, hops: Sequence[FlowHop], *, chunked: bool = True) -> list[FlowResult]:
        """The mel of each hop's tokens, all computed together; the results have the order of `hops`.

        With `chunked` False attention is not masked: each hop must be a whole request, from its first token to its
        last (`final`), as upstream synthesises when it does not stream. A request may have at most `NOISE_FRAMES`
        frames (`lighttts.models.cfm`), prompt included. Rows of a batch do not influence each other but through float
        rounding: which kernel computes a row depends on the shape of the batch.
        """
        counts = [hop.tokens.numel() - (0 if hop.final else self.config.look_ahead) for hop in hops]
        keeps = [not hop.final for hop in hops]
        chunk = self.config.chunk if chunked else None

        def batch(shape: StackShape, ratio: int, states: list[StreamState]) -> StreamBatch:
            return StreamBatch(shape, states, [ratio * count for count in counts], keeps, chunk and ratio * chunk)

        encoder = [
            batch(shape, ratio, [hop.state.encoder[index] for hop in hops])
            for index, (shape, ratio) in enumerate(self.encoder_stacks)
        ]
        mu = self._encode(hops, encoder)
        solver = batch(self.decoder.shape, 2, [hop.state.solver for hop in hops])
        speaker = torch.stack([hop.state.speaker for hop in hops])
        mel = self.decoder.solve(mu, speaker, _prompts(hops, mu.size(1)), solver)
        advanced = zip(*(each.advanced() for each in (*encoder, solver)), strict=True)
        return [
            FlowResult(mel[i, : 2 * counts[i]], _next_state(hop.state, states))
            for i, (hop, states) in enumerate(zip(hops, advanced, strict=True))
        ]

    def _encode(self, hops: Sequence[FlowHop], batches: Sequence[StreamBatch]) -> Tensor:
        width = batches[0].new + self.config.look_ahead
        tokens = torch.stack([F.pad(hop.tokens, (0, width - hop.tokens.numel())) for hop in hops])
        given = torch.tensor([hop.tokens.numel() for hop in hops], device=tokens.device)
        known = torch.arange(width, device=tokens.device) < given[:, None]
        windows = [batch.window(0) for batch in batches]
        mu = self.features(tokens, known, *windows)
        for batch, window in zip(batches, windows, strict=True):
            batch.keep(0, window)
        return mu


def _prompts(hops: Sequence[FlowHop], width: int) -> Tensor:
    """The prompts' mel at each hop's frames, zero after the prompt: (requests, width, mel)."""
    rows = [hop.state.prompt[hop.state.solver.length :][:width] for hop in hops]
    return torch.stack([F.pad(row, (0, 0, 0, width - row.size(0))) for row in rows])


def _next_state(state: FlowState, states: Sequence[StreamState | None]) -> FlowState | None:
    kept = [each for each in states if each is not None]
    return FlowState(state.speaker, state.prompt, tuple(kept[:-1]), kept[-1]) if len(kept) == len(states) else None
