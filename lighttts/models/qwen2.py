"""Qwen2 (Yang et al. 2024, arXiv:2407.10671) as one body of layers with the attention left open.

The layers hold weights and know nothing of caches: what a layer attends to is an `Attend` given by the caller, so
training, prefill and batched decoding run the same code. Weights that multiply the same input are stored as one matrix
(q, k and v; gate and up); a state dict shows and takes them under the published names all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighttts.errors import ModelError
from lighttts.models.section import Section


@dataclass(frozen=True)
class Qwen2Config:
    """Dimensions of a Qwen2 model, as `config.json` names them in parentheses."""

    vocabulary: int
    """Text tokens (vocab_size)."""
    width: int
    """Size of the residual stream (hidden_size)."""
    inner: int
    """Size of the feed-forward layer (intermediate_size)."""
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    norm_epsilon: float
    rope_theta: float
    init_std: float
    """Standard deviation of initial weights (initializer_range)."""

    @classmethod
    def read(cls, section: Section) -> Qwen2Config:
        """From the content of `config.json`. Raises `ModelError` for what is missing, wrong or no plain Qwen2."""
        width, heads, kv_heads = (
            section.integer(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        )
        head_width = section.integer("head_dim") if "head_dim" in section else width // heads
        if width % heads or heads % kv_heads or head_width % 2:
            raise ModelError(
                f"{section.name}: {heads} heads over {kv_heads} key heads do not divide a width of {width}; "
                "restore the published file."
            )
        sliding = "use_sliding_window" in section and section.flag("use_sliding_window")
        if section.text("hidden_act") != "silu" or sliding:
            raise ModelError(f"{section.name} is of a Qwen2 variant that is not supported; restore the published file.")
        # transformers 5 moved the rotary settings into a mapping of their own.
        rope = section.section("rope_parameters") if "rope_parameters" in section else section
        return cls(
            vocabulary=section.integer("vocab_size"),
            width=width,
            inner=section.integer("intermediate_size"),
            layers=section.integer("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            norm_epsilon=section.number("rms_norm_eps"),
            rope_theta=rope.number("rope_theta"),
            init_std=section.number("initializer_range") if "initializer_range" in section else 0.02,
        )


class Attend(Protocol):
    """What a layer attends to, and where it keeps keys and values if anywhere."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Context [batch, heads, time, head_width] of `query` (same shape).

        `key` and `value` [batch, kv_heads, time, head_width] are those of the new positions, already rotated.
        """


class CausalAttend:
    """Attention of a whole batch of sequences to themselves, each position to those up to it."""

    def __init__(self, mask: Tensor | None = None) -> None:
        """`mask` [batch, time] is True at real positions of a batch padded at the end."""
        self.allowed: Tensor | None = None
        if mask is not None:
            time = mask.shape[1]
            causal = torch.ones(time, time, dtype=torch.bool, device=mask.device).tril()
            self.allowed = causal & mask[:, None, None, :]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.allowed, is_causal=self.allowed is None, enable_gqa=True
        )


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) at some positions, in the half-split form."""

    cosine: Tensor
    sine: Tensor
    """Broadcastable to [batch, heads, time, head_width]; the sine is negative in the first half."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(x * self.cosine, x.roll(x.shape[-1] // 2, -1), self.sine)


def rotary_table(config: Qwen2Config, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosines and signed sines [2, length, head_width] of positions 0..length-1; computed in float32."""
    half = config.head_width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=device) / half
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), config.rope_theta**-exponent)
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)]).to(dtype)


def _publish_parts(module: nn.Module, fused: str, parts: Mapping[str, int]) -> None:
    """Let the state dict of `module` show its linear layer `fused` as layers `parts` (name: rows)."""

    def split(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
        for kind in ("weight", "bias"):
            tensor = state.pop(f"{prefix}{fused}.{kind}", None)
            if tensor is not None:
                pieces = torch.split_with_sizes(tensor, list(parts.values()))
                state.update({f"{prefix}{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)})

    def join(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        for kind in ("weight", "bias"):
            names = [f"{prefix}{part}.{kind}" for part in parts]
            if all(name in state for name in names):
                state[f"{prefix}{fused}.{kind}"] = torch.cat([state.pop(name) for name in names])

    module.register_state_dict_post_hook(split)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(join)  # type: ignore[no-untyped-call]


class SelfAttention(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        query, key = config.heads * config.head_width, config.kv_heads * config.head_width
        self.qkv_proj = nn.Linear(config.width, query + 2 * key)
        self.o_proj = nn.Linear(query, config.width, bias=False)
        _publish_parts(self, "qkv_proj", {"q_proj": query, "k_proj": key, "v_proj": key})

    def forward(self, x: Tensor, layer: int, rotation: Rotation, attend: Attend) -> Tensor:
        batch, time, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, time, -1, self.head_width).transpose(1, 2)
        turned = rotation(qkv[:, : self.heads + self.kv_heads])
        context = attend(layer, turned[:, : self.heads], turned[:, self.heads :], qkv[:, -self.kv_heads :])
        projected: Tensor = self.o_proj(context.transpose(1, 2).reshape(batch, time, -1))
        return projected


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.inner = config.inner
        self.gate_up_proj = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.down_proj = nn.Linear(config.inner, config.width, bias=False)
        _publish_parts(self, "gate_up_proj", {"gate_proj": config.inner, "up_proj": config.inner})

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up_proj(x)
        projected: Tensor = self.down_proj(F.silu(both[..., : self.inner]) * both[..., self.inner :])
        return projected


class Layer(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_epsilon)

    def forward(self, x: Tensor, layer: int, rotation: Rotation, attend: Attend) -> Tensor:
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), layer, rotation, attend)
        fed: Tensor = attended + self.mlp(self.post_attention_layernorm(attended))
        return fed


class Qwen2(nn.Module):
    """The transformer without a head. Parameters start as upstream Qwen2's do: normal weights, zero biases."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Hidden states [batch, time, width] after the last norm for embedded input `x` of the same shape."""
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotation, attend)
        normed: Tensor = self.norm(x)
        return normed


def embedding(size: int, width: int) -> nn.Embedding:
    """A table of vectors [size, width] whose values are still to be set: `initialise` or a file of weights does."""
    return nn.Embedding(size, width, _weight=torch.empty(size, width))


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights of standard deviation `std` and zero biases for every linear and embedding layer.

    Those on the meta device have no values: to draw them there, torch would load its compiler, which takes seconds.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding) and not part.weight.is_meta:
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
