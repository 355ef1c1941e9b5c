"""CosyVoice2's flow: speech tokens to mel, in hops or in one pass.

Parts and parameter names are those of CosyVoice's `flow/flow.py` (`CausalMaskedDiffWithXvec`). A request advances in
hops of whole chunks; each hop computes its own frames only and takes everything earlier from its `FlowState`. Fed hop
by hop, the mel is that of one chunk-masked pass over all tokens up to float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.conformer import UpsampleConformerEncoder
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow_config import FlowConfig
from lighttts.models.streaming import CausalConv1d, StreamBatch, StreamState, Window
from lighttts.models.weights import load_into


@dataclass(frozen=True)
class FlowState:
    """What the flow keeps of one request: the pasts of its three stacks, the speaker and the prompt's mel.

    `speaker`: (mel,), projected; `prompt`: (prompt frames, mel). Immutable.
    """

    speaker: Tensor
    prompt: Tensor
    tokens: StreamState
    frames: StreamState
    solver: StreamState

    @property
    def bytes(self) -> int:
        """Memory of the caches."""
        return self.tokens.bytes + self.frames.bytes + self.solver.bytes


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


class CausalMaskedDiffWithXvec(nn.Module):
    """Token embedding, encoder and flow solver.

    For training: `encode` and `speaker` give what `decoder.estimator` is conditioned on; nothing in them stops a
    gradient. For inference: `start`, then `advance`.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        mel = config.estimator.out_channels
        self.input_embedding = nn.Embedding(config.vocabulary, config.encoder.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, mel)
        self.encoder = UpsampleConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, mel)
        self.decoder = CausalConditionalCFM(config.estimator, config.solver)

    @property
    def device(self) -> torch.device:
        return self.encoder_proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder_proj.weight.dtype

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker embeddings (rows, speaker_size) as the estimator takes them, (rows, mel)."""
        out: Tensor = self.spk_embed_affine_layer(F.normalize(embedding, dim=1))
        return out

    def encode(self, tokens: Tensor, lengths: Tensor | None = None, *, chunked: bool) -> Tensor:
        """Frame features (rows, 2 tokens, mel) of whole sequences `tokens` int64 (rows, tokens), padded on the right.

        `lengths`: int64 (rows,), None where nothing is padded; `chunked` masks attention by chunks as streaming does.
        """
        rows, width = tokens.shape
        config = self.config.encoder
        known = torch.ones(rows, width, dtype=torch.bool, device=tokens.device)
        if lengths is not None:
            known = torch.arange(width, device=tokens.device) < lengths[:, None]
        chunk = config.chunk if chunked else None
        token_window = Window.whole(lengths, width, chunk, tokens.device)
        frames = None if lengths is None else 2 * lengths
        frame_window = Window.whole(frames, 2 * width, chunk and 2 * chunk, tokens.device)
        padded = F.pad(tokens, (0, config.look_ahead))
        known = F.pad(known, (0, config.look_ahead))
        return self.features(padded, known, token_window, frame_window)

    def features(self, tokens: Tensor, known: Tensor, token_window: Window, frame_window: Window) -> Tensor:
        """The encoder on token ids with look-ahead (rows, tokens + look_ahead); arguments as the encoder's."""
        embedded = self.input_embedding(tokens.clamp(min=0))
        out: Tensor = self.encoder_proj(self.encoder(embedded, known, token_window, frame_window))
        return out

    def start(self, embedding: Tensor, prompt: Tensor) -> FlowState:
        """State of a request before its first token, which is the first token of its prompt if it has one.

        `embedding`: (speaker_size,); `prompt`: mel of the prompt (2 x prompt tokens, mel bins), may be empty.
        """
        device, dtype = self.device, self.dtype
        encoder = self.encoder
        states = [
            StreamState.start(shape, device, dtype)
            for shape in (encoder.token_shape, encoder.frame_shape, self.decoder.shape)
        ]
        speaker = self.speaker(embedding.to(device, dtype)[None])[0]
        return FlowState(speaker, prompt.to(device, dtype), *states)

    def advance(self, hops: Sequence[FlowHop], *, chunked: bool = True) -> list[FlowResult]:
        """The mel of each hop's tokens, all computed together; the results have the order of `hops`.

        With `chunked` False attention is not masked: each hop must be a whole request, from its first token to its
        last (`final`), as upstream synthesises when it does not stream. A request may have at most `NOISE_FRAMES`
        frames (`lighttts.models.cfm`), prompt included. Rows of a batch do not influence each other but through float
        rounding: which kernel computes a row depends on the shape of the batch.
        """
        config = self.config.encoder
        counts = [hop.tokens.numel() - (0 if hop.final else config.look_ahead) for hop in hops]
        keeps = [not hop.final for hop in hops]
        chunk = config.chunk if chunked else None
        token_batch = StreamBatch(self.encoder.token_shape, [hop.state.tokens for hop in hops], counts, keeps, chunk)
        frames = [2 * count for count in counts]
        frame_batch = StreamBatch(
            self.encoder.frame_shape, [hop.state.frames for hop in hops], frames, keeps, chunk and 2 * chunk
        )
        mu = self._encode_hops(hops, token_batch, frame_batch)
        solver_batch = StreamBatch(
            self.decoder.shape,
            [hop.state.solver for hop in hops],
            frames,
            keeps,
            self.config.estimator.chunk if chunked else None,
        )
        speaker = torch.stack([hop.state.speaker for hop in hops])
        mel = self.decoder.solve(mu, speaker, self._prompts(hops, max(frames)), solver_batch)
        advanced = zip(token_batch.advanced(), frame_batch.advanced(), solver_batch.advanced(), strict=True)
        return [
            FlowResult(mel[i, : frames[i]], _next_state(hop.state, *states))
            for i, (hop, states) in enumerate(zip(hops, advanced, strict=True))
        ]

    def _encode_hops(self, hops: Sequence[FlowHop], token_batch: StreamBatch, frame_batch: StreamBatch) -> Tensor:
        width = token_batch.new + self.config.encoder.look_ahead
        tokens = torch.stack([F.pad(hop.tokens, (0, width - hop.tokens.numel())) for hop in hops])
        given = torch.tensor([hop.tokens.numel() for hop in hops], device=tokens.device)
        known = torch.arange(width, device=tokens.device) < given[:, None]
        token_window, frame_window = token_batch.window(0), frame_batch.window(0)
        mu = self.features(tokens, known, token_window, frame_window)
        token_batch.keep(0, token_window)
        frame_batch.keep(0, frame_window)
        return mu

    def _prompts(self, hops: Sequence[FlowHop], width: int) -> Tensor:
        """The prompts' mel at each hop's frames, zero after the prompt: (requests, width, mel)."""
        rows = [hop.state.prompt[hop.state.frames.length :][:width] for hop in hops]
        return torch.stack([F.pad(row, (0, 0, 0, width - row.size(0))) for row in rows])


def _next_state(
    state: FlowState, tokens: StreamState | None, frames: StreamState | None, solver: StreamState | None
) -> FlowState | None:
    if tokens is None or frames is None or solver is None:
        return None
    return FlowState(state.speaker, state.prompt, tokens, frames, solver)


def load_flow(
    directory: ModelDirectory, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CausalMaskedDiffWithXvec:
    """The flow of a CosyVoice2 model directory, ready for inference. Raises `ModelError`.

    `dtype` is that of the layers and caches; noise, times and the solver's sum stay in float32.
    """
    model = CausalMaskedDiffWithXvec(FlowConfig.read(directory.settings))
    load_into(model, directory.load_weights("flow.pt"), str(directory.path("flow.pt")))
    for module in model.modules():
        if isinstance(module, CausalConv1d):
            module.lay_out()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval().to(device)
