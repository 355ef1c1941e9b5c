"""Conformer encoder that turns speech tokens into frames at twice their rate.

The layers and parameter names are those of CosyVoice's `transformer/upsample_encoder.py` (without the convolution and
macaron modules, which CosyVoice2 does not use): a look-ahead convolution, conformer layers at token rate, nearest-
neighbour up-sampling with a causal convolution, conformer layers at frame rate. Attention is relative (Dai et al.,
"Transformer-XL", arXiv:1901.02860, section 3.3) with ESPnet's two-sided positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.streaming import CausalConv1d, StreamedAttention, Window, convolve, number_layers


@dataclass(frozen=True)
class EncoderConfig:
    """Dimensions of the encoder. `layers` at token rate, `up_layers` at frame rate; `chunk`: tokens of a chunk."""

    input_size: int
    width: int
    heads: int
    hidden: int
    layers: int
    look_ahead: int
    chunk: int
    dropout: float = 0.1
    positional_dropout: float = 0.1
    attention_dropout: float = 0.1
    up_layers: int = 4
    """Upstream builds four whatever its yaml says."""


def relative_positions(past: int, new: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances query - key from past + new - 1 down to 1 - new: (1, past + 2 new - 1, width)."""
    width = like.size(-1)
    distances = torch.arange(past + new - 1, -new, -1, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None].to(like.dtype)


def align_distances(scores: Tensor, columns: int) -> Tensor:
    """Turn scores by distance (..., new, columns + new - 1) into scores by key (..., new, columns).

    Row i of the result is row i of `scores` from element new - 1 - i on: each row starts one element earlier than the
    row above, which is a plain view once the rows lie end to end.
    """
    new, distances = scores.shape[-2:]
    if new == 1:
        return scores
    flat = scores.flatten(-2)[..., new - 1 : new * distances - 1]
    return flat.view(*flat.shape[:-1], new, distances - 1)[..., :columns]


class RelativeAttention(StreamedAttention):
    """Multi-head attention with relative positions over (rows, frames, width)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.width = config.width
        self.dropout = config.attention_dropout
        self.linear_q = nn.Linear(config.width, config.width)
        self.linear_k = nn.Linear(config.width, config.width)
        self.linear_v = nn.Linear(config.width, config.width)
        self.linear_out = nn.Linear(config.width, config.width)
        self.linear_pos = nn.Linear(config.width, config.width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(config.heads, config.width // config.heads))
        self.pos_bias_v = nn.Parameter(torch.empty(config.heads, config.width // config.heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)

    def forward(self, x: Tensor, positions: Tensor, window: Window) -> Tensor:
        query = self.split(self.linear_q(x))
        keys, values = window.extend(self.layer, self.linear_k(x), self.linear_v(x))
        keys, values = self.split(keys).transpose(1, 2), self.split(values).transpose(1, 2)
        distances = self.split(self.linear_pos(positions)).permute(0, 2, 3, 1)
        by_distance = (query + self.pos_bias_v).transpose(1, 2) @ distances
        bias = align_distances(by_distance, keys.size(-2)) * (query.size(-1) ** -0.5)
        if window.mask is not None:
            bias = bias.masked_fill(~window.mask, -torch.inf)
        dropout = self.dropout if self.training else 0.0
        content = (query + self.pos_bias_u).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(content, keys, values, attn_mask=bias, dropout_p=dropout)
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.hidden)
        self.w_2 = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(self.dropout(F.silu(self.w_1(x))))
        return out


class ConformerLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a residual connection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config)
        self.feed_forward = FeedForward(config)
        self.norm_mha = nn.LayerNorm(config.width, eps=1e-12)
        self.norm_ff = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, window: Window) -> Tensor:
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, window))
        out: Tensor = x + self.dropout(self.feed_forward(self.norm_ff(x)))
        return out


class LinearEmbedding(nn.Module):
    """Projection to the encoder's width, scaled by its square root as relative attention expects."""

    def __init__(self, size: int, config: EncoderConfig) -> None:
        super().__init__()
        self.out = nn.Sequential(
            nn.Linear(size, config.width), nn.LayerNorm(config.width, eps=1e-5), nn.Dropout(config.dropout)
        )
        self.scale = math.sqrt(config.width)
        self.dropout = nn.Dropout(config.positional_dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.out(x) * self.scale)
        return out


class LookAhead(nn.Module):
    """Residual pair of convolutions: the first sees `look_ahead` tokens to come, the second is causal."""

    def __init__(self, width: int, hidden: int, look_ahead: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, hidden, look_ahead + 1)
        self.conv2 = CausalConv1d(hidden, width)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """(rows, tokens + look_ahead, width) -> (rows, tokens, width)."""
        ahead = convolve(x, self.conv1.weight, self.conv1.bias)
        out: Tensor = self.conv2(F.leaky_relu(ahead), window)
        return out + x[:, : out.size(1)]


class UpsamplingConv1d(CausalConv1d):
    """Each token twice, then a causal convolution of five taps: four earlier frames are two earlier tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, taps=5)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        return convolve(window.lead(self.first, x).repeat_interleave(2, dim=1), self.weight, self.bias)


class UpLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv = UpsamplingConv1d(config.width)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        out: Tensor = self.conv(x, window)
        return out


class UpsampleConformerEncoder(nn.Module):
    """Token features (rows, tokens + look_ahead, input_size) -> frame features (rows, 2 tokens, width)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = LinearEmbedding(config.input_size, config)
        self.after_norm = nn.LayerNorm(config.width, eps=1e-5)
        self.pre_lookahead_layer = LookAhead(config.width, config.width, config.look_ahead)
        self.encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))
        self.up_layer = UpLayer(config)
        self.up_embed = LinearEmbedding(config.width, config)
        self.up_encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.up_layers))
        self.token_shape = number_layers(self.pre_lookahead_layer, self.encoders, self.up_layer)
        self.frame_shape = number_layers(self.up_encoders)

    def forward(self, tokens: Tensor, known: Tensor, token_window: Window, frame_window: Window) -> Tensor:
        """`known`: bool (rows, tokens + look_ahead), False for padding and for look-ahead past the last token.

        The windows are those of the layers at token rate (with both convolutions) and at frame rate.
        """
        x = self.embed(tokens) * known[..., None]
        x = self.pre_lookahead_layer(x, token_window)
        positions = relative_positions(token_window.past, x.size(1), x)
        for layer in self.encoders:
            x = layer(x, positions, token_window)
        x = self.up_embed(self.up_layer(x, token_window))
        positions = relative_positions(frame_window.past, x.size(1), x)
        for layer in self.up_encoders:
            x = layer(x, positions, frame_window)
        out: Tensor = self.after_norm(x)
        return out
