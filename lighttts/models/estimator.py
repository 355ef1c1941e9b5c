"""Velocity estimator of the flow: a U-Net of one level, causal convolutions and chunk-masked transformer blocks.

Layers and parameter names are those of CosyVoice's `flow/decoder.py` (`CausalConditionalDecoder`), which builds on
Matcha-TTS's decoder (Mehta et al., arXiv:2309.03199) and diffusers' transformer block. CosyVoice2 has a single
resolution level, so nothing is ever down-sampled and every layer is causal but for attention inside a chunk.
Tensors are (rows, frames, channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.streaming import CausalConv1d, StreamedAttention, Window


@dataclass(frozen=True)
class EstimatorConfig:
    """Dimensions of the U-Net. `blocks`: transformer blocks in each of the `middle` + 2 stages; `chunk`: mel frames."""

    in_channels: int
    out_channels: int
    width: int
    head_size: int
    heads: int
    blocks: int
    middle: int
    chunk: int
    dropout: float = 0.0


class Pointwise(nn.Conv1d):
    """Convolution of one tap over (rows, frames, channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[..., 0], self.bias)


class CausalBlock(nn.Module):
    """Convolution, layer norm, Mish."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"0": CausalConv1d(in_channels, width), "2": nn.LayerNorm(width)})

    def forward(self, x: Tensor, window: Window) -> Tensor:
        return F.mish(self.block["2"](self.block["0"](x, window)))


class ResidualBlock(nn.Module):
    """Two causal blocks with the time embedding added between them."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(4 * width, width))
        self.block1 = CausalBlock(in_channels, width)
        self.block2 = CausalBlock(width, width)
        self.res_conv = Pointwise(in_channels, width)

    def forward(self, x: Tensor, time: Tensor, window: Window) -> Tensor:
        hidden = self.block1(x, window) + self.mlp(time)[:, None]
        out: Tensor = self.block2(hidden, window) + self.res_conv(x)
        return out


class SelfAttention(StreamedAttention):
    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.width = config.heads * config.head_size
        self.dropout = config.dropout
        self.to_q = nn.Linear(config.width, self.width, bias=False)
        self.to_k = nn.Linear(config.width, self.width, bias=False)
        self.to_v = nn.Linear(config.width, self.width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(self.width, config.width)])

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        keys, values = window.extend(self.layer, self.to_k(x), self.to_v(x))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self.split(self.to_q(x)), self.split(keys), self.split(values), attn_mask=window.mask, dropout_p=dropout
        )
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class Gelu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(Gelu(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn1 = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.ff = FeedForward(config.width, config.dropout)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        x = x + self.attn1(self.norm1(x), window)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Stage(nn.ModuleList):
    """A residual block, transformer blocks and, outside the middle, a causal convolution."""

    def __init__(self, in_channels: int, config: EstimatorConfig, *, convolution: bool) -> None:
        blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.blocks))
        last = [CausalConv1d(config.width, config.width)] if convolution else []
        super().__init__([ResidualBlock(in_channels, config.width), blocks, *last])

    def forward(self, x: Tensor, time: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """What goes on and what skips to the other side: the output of the convolution, and its input."""
        residual, blocks, *last = self
        x = residual(x, time, window)
        for block in blocks.children():
            x = block(x, window)
        return (last[0](x, window), x) if last else (x, x)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t through two linear layers: t (n,) in [0, 1] -> (n, 4 width)."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.size = config.in_channels
        self.linear_1 = nn.Linear(self.size, 4 * config.width)
        self.linear_2 = nn.Linear(4 * config.width, 4 * config.width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.size // 2
        rates = torch.exp(torch.arange(half, device=t.device).float() * (-math.log(10000) / (half - 1)))
        angles = 1000 * t.float()[:, None] * rates
        embedded = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(embedded)))
        return out


class CausalConditionalDecoder(nn.Module):
    """Velocity of the mel at time t, given frame features, speaker and the prompt's mel."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time_mlp = TimeEmbedding(config)
        self.down_blocks = nn.ModuleList([Stage(config.in_channels, config, convolution=True)])
        self.mid_blocks = nn.ModuleList(Stage(width, config, convolution=False) for _ in range(config.middle))
        self.up_blocks = nn.ModuleList([Stage(2 * width, config, convolution=True)])
        self.final_block = CausalBlock(width, width)
        self.final_proj = Pointwise(width, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | CausalConv1d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, time: Tensor, window: Window) -> Tensor:
        """`x`, `mu`, `prompt`: (rows, frames, mel); `speaker`: (rows, mel).

        `time`: (rows or 1, 4 width) from `time_mlp`. Returns (rows, frames, mel). Frames that the window counts as
        padding hold numbers without meaning.
        """
        x = torch.cat([x, mu, speaker[:, None].expand_as(x), prompt], dim=-1)
        x, skipped = self.down_blocks[0](x, time, window)
        for stage in self.mid_blocks:
            x, _ = stage(x, time, window)
        x, _ = self.up_blocks[0](torch.cat([x, skipped], dim=-1), time, window)
        out: Tensor = self.final_proj(self.final_block(x, window))
        return out
