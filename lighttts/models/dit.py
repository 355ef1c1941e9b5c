"""CosyVoice3's velocity estimator: a diffusion transformer with causal convolutions in front of it.

Peebles and Xie, arXiv:2212.09748, as F5-TTS has it (Chen et al., arXiv:2410.06885). Layers and parameter names are
those of CosyVoice's `flow/DiT/dit.py`. The solver's time scales, shifts and gates each block. Tensors are (rows,
frames, channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.f0 import without_tf32
from lighttts.models.streaming import StreamedAttention, StreamedConvolution, Window

_TIME_SIZE = 256
TAPS, GROUPS = 31, 16
"""Of the convolutions that tell the blocks where a frame lies; upstream has them as constants."""


@dataclass(frozen=True)
class DiTConfig:
    """`mel`: bins of what goes in and out; `ff_ratio`: of the feed-forward's width; `chunk`: mel frames."""

    mel: int
    width: int
    blocks: int
    heads: int
    head_size: int
    ff_ratio: int
    chunk: int


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t through two linear layers: t (n,) in [0, 1] -> (n, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(_TIME_SIZE, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = _TIME_SIZE // 2
        rates = torch.exp(torch.arange(half, device=t.device).float() * (-math.log(10000) / (half - 1)))
        angles = 1000 * t.float()[:, None] * rates
        embedded = torch.cat([angles.sin(), angles.cos()], dim=-1)
        weight = self.time_mlp[0].weight
        assert isinstance(weight, Tensor)
        out: Tensor = self.time_mlp(embedded.to(weight.dtype))
        return out


class PositionConv1d(StreamedConvolution):
    """Causal convolution of `TAPS` taps in `GROUPS` groups of channels. Parameters as `nn.Conv1d`'s."""

    tail = TAPS - 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = channels
        like = nn.Conv1d(channels, channels, TAPS, groups=GROUPS)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor, window: Window) -> Tensor:
        led = window.lead(self.first, x).transpose(1, 2)
        with without_tf32():
            return F.conv1d(led, self.weight, self.bias, groups=GROUPS).transpose(1, 2)


class PositionEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ModuleList([PositionConv1d(width)])
        self.conv2 = nn.ModuleList([PositionConv1d(width)])

    def forward(self, x: Tensor, window: Window) -> Tensor:
        return F.mish(self.conv2[0](F.mish(self.conv1[0](x, window)), window))


class InputEmbedding(nn.Module):
    """Noisy mel, prompt, features and speaker, each of `mel` channels, as one frame of `width`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * config.mel, config.width)
        self.conv_pos_embed = PositionEmbedding(config.width)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        x = self.proj(x)
        out: Tensor = self.conv_pos_embed(x, window) + x
        return out


@dataclass(frozen=True)
class Turn:
    """Rotary position embedding of pairs of neighbouring features: `cosine`, `sine` (rows or 1, frames, size)."""

    cosine: Tensor
    sine: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turns the first `size` features of `x` (rows, frames, width).

        Those are the first head's. Upstream turns queries and keys before it splits them into heads, so that the
        others never see a position, and published weights are used to it.
        """
        size = self.cosine.size(-1)
        first = x[..., :size]
        swapped = torch.stack([-first[..., 1::2], first[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([first * self.cosine + swapped * self.sine, x[..., size:]], dim=-1)


class RotaryEmbedding(nn.Module):
    """The rates of rotation are in the weights, but are not trained; they stay in float32."""

    inv_freq: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, size, 2).float() / size))

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """`positions`: int64 (rows or 1, frames)."""
        angles = (positions[..., None] * self.inv_freq).repeat_interleave(2, dim=-1)
        return Turn(angles.cos().to(dtype), angles.sin().to(dtype))


class SelfAttention(StreamedAttention):
    """Keys are kept turned to their absolute position."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.width = config.heads * config.head_size
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.width, self.width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(self.width, config.width)])

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, turn: Turn, window: Window) -> Tensor:
        keys, values = window.extend(self.layer, turn(self.to_k(x)), self.to_v(x))
        mixed = F.scaled_dot_product_attention(
            self.split(turn(self.to_q(x))), self.split(keys), self.split(values), attn_mask=window.mask
        )
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        inner = config.ff_ratio * config.width
        into = nn.Sequential(nn.Linear(config.width, inner), nn.GELU(approximate="tanh"))
        # The published names count a dropout, which inference does not have.
        self.ff = nn.Sequential(into, nn.Identity(), nn.Linear(inner, config.width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ff(x)
        return out


class Modulation(nn.Module):
    """`parts` vectors of `width` that the time embedding (rows or 1, width) gives, each (rows or 1, 1, width)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        given: Tensor = self.linear(F.silu(time))[:, None]
        return given.chunk(self.parts, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x` (rows, frames, width) normalised, scaled by 1 + `scale` and shifted."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn_norm = Modulation(config.width, 6)
        self.attn = SelfAttention(config)
        self.ff = FeedForward(config)

    def forward(self, x: Tensor, time: Tensor, turn: Turn, window: Window) -> Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.attn_norm(time)
        x = x + gate * self.attn(modulated(x, shift, scale), turn, window)
        out: Tensor = x + ff_gate * self.ff(modulated(x, ff_shift, ff_scale))
        return out


class DiT(nn.Module):
    """Velocity of the mel at time t, given frame features, speaker and the prompt's mel."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.width)
        self.input_embed = InputEmbedding(config)
        self.rotary_embed = RotaryEmbedding(config.head_size)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm_out = Modulation(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.mel)

    def time_mlp(self, t: Tensor) -> Tensor:
        """The embedding (n, width) of times t (n,)."""
        embedded: Tensor = self.time_embed(t)
        return embedded

    def forward(self, x: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, time: Tensor, window: Window) -> Tensor:
        """`x`, `mu`, `prompt`: (rows, frames, mel); `speaker`: (rows, mel).

        `time`: (rows or 1, width) from `time_mlp`. Returns (rows, frames, mel). Frames that the window counts as
        padding hold numbers without meaning.
        """
        frames = x.size(1)
        x = self.input_embed(torch.cat([x, prompt, mu, speaker[:, None].expand_as(x)], dim=-1), window)
        turn = self.rotary_embed(window.positions(frames, x.device), x.dtype)
        for block in self.transformer_blocks:
            x = block(x, time, turn, window)
        scale, shift = self.norm_out(time)
        out: Tensor = self.proj_out(modulated(x, shift, scale))
        return out
