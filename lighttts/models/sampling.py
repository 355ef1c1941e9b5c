"""Repetition-aware nucleus sampling (VALL-E 2, Chen et al. 2024, arXiv:2406.05370), batched on the device.

Computes what upstream's `cosyvoice/utils/common.py: ras_sampling` computes with another source of randomness: a draw
from the nucleus; if the token drawn is already in the recent window often enough, a draw from the whole distribution
without that token. Both draws are made for every row, so that nothing is read back to the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lighttts.errors import ModelError
from lighttts.models.rng import Stream, uniform
from lighttts.models.section import Section


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler, in the yaml's words."""

    top_p: float
    """The nucleus takes tokens, most likely first, while those before have less than this probability together,"""
    top_k: int
    """and at most this many."""
    win_size: int
    """How many of the last tokens are looked at for repetition."""
    tau_r: float
    """Share of the window from which on a token counts as repeated."""

    @classmethod
    def read(cls, section: Section) -> Sampling:
        """From the yaml's `llm.sampling`. Raises `ModelError`."""
        sampling = cls(
            top_p=section.number("top_p"),
            top_k=section.integer("top_k"),
            win_size=section.integer("win_size"),
            tau_r=section.number("tau_r"),
        )
        if section.class_name != "ras_sampling" or not sampling.top_p > 0:
            raise ModelError(f"{section.name}: {section.path} is no usable ras_sampling; restore the published file.")
        return sampling

    @property
    def repeats(self) -> int:
        """Occurrences in the window from which on a token counts as repeated."""
        return math.ceil(self.win_size * self.tau_r)


def sample(logits: Tensor, history: Tensor, seed: Tensor, step: Tensor, sampling: Sampling) -> Tensor:
    """One token a row: int64 [rows].

    `logits` float [rows, vocabulary], -inf where a token is excluded; `history` int64 [rows, win_size], the last
    tokens of the request, -1 where there are none yet; `seed` int64 [rows] of the request; `step` int64 [rows], index
    of the token to be drawn. A row depends on nothing but its own entries.
    """
    logits = logits.float()
    token = _from_nucleus(logits.softmax(-1), uniform(seed, step, Stream.NUCLEUS), sampling)
    repeated = (history == token.unsqueeze(1)).sum(1) >= sampling.repeats
    others = logits.scatter(1, token.unsqueeze(1), -math.inf).softmax(-1)
    return torch.where(repeated, _from_all(others, uniform(seed, step, Stream.REPETITION)), token)


def _from_nucleus(probability: Tensor, draw: Tensor, sampling: Sampling) -> Tensor:
    """A token of each row's nucleus; `draw` [rows] in (0, 1)."""
    size = probability.shape[1]
    # Positive floats order as their bits do. The reversed index below them makes the order of equals that of a stable
    # descending sort, which topk alone does not promise.
    place = torch.arange(size - 1, -1, -1, device=probability.device)
    key = (probability.view(torch.int32).long() << 32) | place
    top = key.topk(min(sampling.top_k, size)).values
    token = size - 1 - (top & 0xFFFFFFFF)
    mass = (top >> 32).int().view(torch.float32).double()
    before = F.pad(mass.cumsum(1)[:, :-1], (1, 0))
    mass = mass.masked_fill(before >= sampling.top_p, 0.0)
    return token.gather(1, _invert(mass.cumsum(1), draw)).squeeze(1)


def _from_all(probability: Tensor, draw: Tensor) -> Tensor:
    return _invert(probability.double().cumsum(1), draw).squeeze(1)


def _invert(cumulative: Tensor, draw: Tensor) -> Tensor:
    """Column [rows, 1] at which `draw` falls in the float64 cumulative mass [rows, columns], never one without mass."""
    return torch.searchsorted(cumulative, cumulative[:, -1:] * draw.double().unsqueeze(1), right=True)
