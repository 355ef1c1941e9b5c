"""Voices registered in a model directory's `spk2info.pt`.

An entry holds just `embedding`, or what upstream's zero-shot registration saves: the prompt's text and speech tokens,
its mel and its speaker embedding, so that a request with the voice needs no prompt audio.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lighttts.errors import ModelError
from lighttts.models.weights import load_checkpoint

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def _no_tokens() -> Tokens:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class VoiceInfo:
    """One registered voice. A voice without a prompt has empty prompt arrays."""

    name: str
    embedding: Floats
    """Speaker embedding [spk_embed_dim], not normalised: `embedding`, or `flow_embedding` of a registered prompt."""
    prompt_text: Tokens = field(default_factory=_no_tokens)
    """Text token ids of the prompt [n]."""
    llm_prompt_speech_token: Tokens = field(default_factory=_no_tokens)
    """Speech tokens of the prompt as the language model takes them [t]."""
    flow_prompt_speech_token: Tokens = field(default_factory=_no_tokens)
    """Speech tokens of the prompt as the flow takes them [t]."""
    prompt_speech_feat: Floats = field(default_factory=lambda: np.zeros((0, 80), np.float32))
    """Mel of the prompt [t x token_mel_ratio, mel bins]."""


@dataclass(frozen=True)
class VoiceLimits:
    """What a model's voices must fit."""

    embedding_size: int
    mel_bins: int
    speech_tokens: int
    """Number of speech token ids."""
    mel_ratio: int
    """Mel frames a speech token."""


def read_voices(path: Path, limits: VoiceLimits) -> dict[str, VoiceInfo]:
    """The voices of a `spk2info.pt` by name. Raises `ModelError` naming the voice and what is wrong with it."""
    return {name: _Entry(path, name, entry).voice(limits) for name, entry in load_checkpoint(path).items()}


class _Entry:
    def __init__(self, path: Path, name: str, entry: object) -> None:
        self.path = path
        self.name = name
        self.entry = entry if isinstance(entry, dict) else {}

    def voice(self, limits: VoiceLimits) -> VoiceInfo:
        key = "flow_embedding" if "flow_embedding" in self.entry else "embedding"
        embedding = self.array(key, torch.float32, 1)
        if embedding.size != limits.embedding_size:
            raise self.error(f"{key} has {embedding.size} values where the yaml asks for {limits.embedding_size}")
        mel = self.array("prompt_speech_feat", torch.float32, 2, (0, limits.mel_bins))
        flow_tokens = self.tokens("flow_prompt_speech_token", limits.speech_tokens)
        if mel.shape != (len(flow_tokens) * limits.mel_ratio, limits.mel_bins):
            raise self.error(
                f"prompt_speech_feat has shape {mel.shape}, not {limits.mel_ratio} frames of {limits.mel_bins} bins "
                f"for each of {len(flow_tokens)} tokens"
            )
        return VoiceInfo(
            name=self.name,
            embedding=embedding.astype(np.float32),
            prompt_text=self.tokens("prompt_text", np.iinfo(np.int32).max),
            llm_prompt_speech_token=self.tokens("llm_prompt_speech_token", limits.speech_tokens),
            flow_prompt_speech_token=flow_tokens,
            prompt_speech_feat=mel.astype(np.float32),
        )

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: voice {self.name}: {what}; register the voice again.")

    def array(
        self, key: str, dtype: torch.dtype, dimensions: int, empty: tuple[int, ...] | None = None
    ) -> npt.NDArray[np.generic]:
        """A tensor without its leading batch dimension; `empty` is the shape of what a missing key stands for."""
        value = self.entry.get(key)
        if value is None and empty is not None:
            return torch.zeros(empty, dtype=dtype).numpy()
        if not isinstance(value, Tensor):
            raise self.error(f"{key} is missing or not a tensor")
        if value.dim() == dimensions + 1 and value.shape[0] == 1:
            value = value[0]
        if value.dim() != dimensions or value.is_floating_point() != dtype.is_floating_point:
            raise self.error(f"{key} has shape {tuple(value.shape)} and type {value.dtype}, which is none of a voice")
        if not bool(torch.isfinite(value).all()):
            raise self.error(f"{key} holds values that are not finite")
        return value.to(dtype).numpy()

    def tokens(self, key: str, count: int) -> Tokens:
        tokens = self.array(key, torch.int64, 1, (0,))
        if tokens.size and (tokens.min() < 0 or tokens.max() >= count):
            raise self.error(f"{key} holds a token outside 0..{count - 1}")
        return tokens.astype(np.int32)
