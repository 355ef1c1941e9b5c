"""The language model for training: Qwen2 (Yang et al. 2024) over text and speech tokens, on rows packed with several
documents.

It computes what `lighttts.models` computes at run time and keeps the published key names; beside the speech logits it
gives the attention logits of one head in some layers, which training ties to the text being spoken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.packing import Layout


@dataclass(frozen=True)
class Shape:
    """Dimensions. ``guided``: layers whose first head is led to the text being spoken."""

    hidden: int = 384
    layers: int = 7
    heads: int = 6
    kv_heads: int = 3
    inner: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-6
    dropout: float = 0.15
    guided: tuple[int, ...] = (2, 4)

    @property
    def head(self) -> int:
        return self.hidden // self.heads


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rotations(position: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, size] of the rotary embedding (Su et al. 2021) at positions [B, T]."""
    rate = theta ** (-torch.arange(0, size, 2, device=position.device).float() / size)
    angle = position[..., None].float() * rate
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of [B, H, T, size], halves paired as Qwen2 pairs them."""
    low, high = x.chunk(2, dim=-1)
    return (x * turn[0] + torch.cat([-high, low], dim=-1) * turn[1]).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.hidden, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, hidden] -> the same, and the first head's queries and keys [B, T, size]. ``bias`` [B, 1, T, T] is
        additive."""
        size = self.shape.head
        q = rotate(self.q_proj(x).unflatten(-1, (-1, size)).transpose(1, 2), turn)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, size)).transpose(1, 2), turn)
        v = self.v_proj(x).unflatten(-1, (-1, size)).transpose(1, 2)
        groups = self.shape.heads // self.shape.kv_heads
        wide_k, wide_v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        heard = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=bias.to(q.dtype))
        return self.o_proj(heard.transpose(1, 2).flatten(2)), q[:, 0], k[:, 0]


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, q, k = self.self_attn(self.input_layernorm(x), turn, bias)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x))), q, k


class SpeechLM(nn.Module):
    """Text and speech tokens in, speech logits out. One table embeds all ids, laid out as `Layout` says."""

    def __init__(self, layout: Layout, shape: Shape) -> None:
        super().__init__()
        self.layout, self.shape = layout, shape
        self.embedding = nn.Embedding(layout.size, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)
        self.llm_decoder = nn.Linear(shape.hidden, layout.speech + 3)
        self.dropout = nn.Dropout(shape.dropout)
        self.apply(self._initialise)
        for name, weight in self.layers.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, position: Tensor, document: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ids, position, document [B, T] int64 -> logits [B, T, speech + 3]; guided heads' attention logits, [B, T,
        T] each.

        A token sees itself and what comes before it in its own document.
        """
        bias = visible(document)
        turn = rotations(position, self.shape.head, self.shape.rope_theta)
        x = self.dropout(self.embedding(ids))
        attention = []
        for i, layer in enumerate(self.layers):
            x, q, k = layer(x, turn, bias)
            if i in self.shape.guided:
                attention.append(q @ k.transpose(1, 2) * self.shape.head**-0.5 + bias[:, 0].to(q.dtype))
        return self.llm_decoder(self.norm(x)), attention

    def published(self) -> dict[str, Tensor]:
        """The weights under upstream's names (`llm.pt`), shared tensors included."""
        layout = self.layout
        text, special, speech = torch.split(self.embedding.weight, [layout.text, 2, layout.speech + 3])
        state = {
            "llm.model.model.embed_tokens.weight": text,
            "llm.model.lm_head.weight": text,
            "llm_embedding.weight": special,
            "speech_embedding.weight": speech,
            "llm.model.model.norm.weight": self.norm.weight,
            "llm_decoder.weight": self.llm_decoder.weight,
            "llm_decoder.bias": self.llm_decoder.bias,
        }
        return state | {f"llm.model.model.layers.{name}": p for name, p in self.layers.named_parameters()}

    @torch.no_grad()
    def take(self, published: Mapping[str, Tensor]) -> None:
        """Take over the weights of an `llm.pt` of these dimensions. Raises KeyError or RuntimeError for any other."""
        for name, parameter in self.published().items():
            parameter.copy_(published[name])


def visible(document: Tensor) -> Tensor:
    """Additive mask [B, 1, T, T]: 0 where a row's token may look, -10000 elsewhere."""
    size = document.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=document.device).tril()
    seen = (document[:, :, None] == document[:, None, :]) & causal
    return torch.where(seen, 0.0, -1e4)[:, None]


def guide_loss(attention: list[Tensor], guide: Tensor) -> tuple[Tensor, Tensor]:
    """How far the guided heads are from the text being spoken (cross-entropy over positions), and how often they are
    right.

    guide [B, T] int64: position in the row of the text token to look at, -100 where there is none.
    """
    rows = torch.cat([a.flatten(0, 1) for a in attention]).float()
    target = torch.cat([guide.flatten()] * len(attention))
    loss = F.cross_entropy(rows, target, label_smoothing=0.0)
    last = attention[-1].argmax(-1)
    known = guide >= 0
    return loss, ((last - guide).abs() <= 1).logical_and(known).sum() / known.sum().clamp_min(1)
