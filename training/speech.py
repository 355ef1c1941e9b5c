"""The store's audio, pitch and speech tokens on the training device, cut into rows by index.

Everything lies in flat tensors that stay in place, and the number of samples ready is itself a tensor: cutting rows
needs no copy from or to the host, so it can be part of a captured training step while `refresh` lets the data grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.features import FLOW_HOP, FLOW_MARGIN, SAMPLES_PER_TOKEN
from training.store import FRAME, SAMPLE_RATE, Store, part_names

SHORTEST = SAMPLE_RATE // 2  # utterances are half a second on average, or longer
VOICED_HZ = 40.0  # the teacher's own threshold: below it a pitch value means unvoiced


class Speech:
    """Audio and pitch of a growing store (or of some of its parts), up to a fixed number of hours."""

    def __init__(self, folder: Path, hours: float, device: torch.device, only: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.only = only
        self.capacity = int(hours * 3600 * SAMPLE_RATE) // FRAME * FRAME
        self.pcm = torch.zeros(self.capacity, dtype=torch.int16, device=device)
        self.f0 = torch.zeros(self.capacity // FRAME, dtype=torch.float16, device=device)
        self.ready = torch.zeros((), dtype=torch.int64, device=device)
        self.names: list[str] = []
        self.samples = 0

    def refresh(self) -> bool:
        """Take in parts finished since the last call, as many as fit. True if there is anything to train on."""
        wanted = part_names(self.folder) if self.only is None else self.only
        fresh = [name for name in wanted if name not in self.names]
        for name in fresh:
            part = Store.open(self.folder, [name])
            count = min(int(part.start[-1]), self.capacity - self.samples)
            if count == 0:
                break
            end = self.samples + count
            self.pcm[self.samples : end].copy_(torch.from_numpy(part.pcm()[:count]))
            self.f0[self.samples // FRAME : end // FRAME].copy_(torch.from_numpy(part.f0[: count // FRAME]))
            self.samples = end
            self.names.append(name)
        self.ready.fill_(self.samples)
        return self.samples > 0

    def crops(self, rows: int, frames: int) -> tuple[Tensor, Tensor]:
        """Random stretches: audio with the mel's margin [rows, frames * 480 + 1440] float32, pitch [rows, frames]."""
        length = frames * FLOW_HOP
        room = self.ready - length - 2 * FLOW_MARGIN
        start = (torch.rand(rows, device=self.pcm.device, dtype=torch.float64) * room).long() + FLOW_MARGIN
        index = start[:, None] + torch.arange(-FLOW_MARGIN, length + FLOW_MARGIN, device=start.device)
        centre = start[:, None] + FLOW_HOP // 2 + torch.arange(0, length, FLOW_HOP, device=start.device)
        return self.pcm[index].float() / 32768.0, pitch_at(self.f0, centre)


def pitch_at(f0: Tensor, samples: Tensor) -> Tensor:
    """Pitch at sample positions: the teacher's contour (80 values a second), linearly between them; 0 where unvoiced.

    f0: flat, value k at sample 300 k + 150. samples: int64 of any shape. Returns float32 Hz of that shape.
    """
    position = (samples.double() - FRAME / 2) / FRAME
    below = position.floor().long().clamp(0, len(f0) - 2)
    share = (position - below).clamp(0, 1).float()
    hz = torch.lerp(f0[below].float(), f0[below + 1].float(), share)
    return torch.where(hz > VOICED_HZ, hz, 0.0)


class TokenRows:
    """Speech tokens of a growing store with the audio under each, as one stream of utterances cut into rows.

    A row begins at an utterance's start or anywhere, and runs on into the utterances that follow: no padding, long
    contexts, and the joins are the pauses between sentences.
    """

    def __init__(self, folder: Path, hours: float, device: torch.device) -> None:
        """Room for `hours` of audio; the parts tokenised so far. Raises FileNotFoundError if there is none."""
        self.folder = folder
        self.capacity = int(hours * 3600 * SAMPLE_RATE)
        room = self.capacity // SAMPLES_PER_TOKEN + self.capacity // SHORTEST
        self.pcm = torch.zeros(self.capacity + SAMPLES_PER_TOKEN, dtype=torch.int16, device=device)
        self.token = torch.zeros(room, dtype=torch.int64, device=device)
        self.begin = torch.zeros(room, dtype=torch.int64, device=device)
        self.filled = torch.zeros(room, dtype=torch.int16, device=device)
        self.part = torch.zeros(room, dtype=torch.int64, device=device)
        self.first = torch.zeros(self.capacity // SHORTEST, dtype=torch.int64, device=device)
        self.ready = torch.zeros(2, dtype=torch.int64, device=device)  # tokens, utterances
        self.names: list[str] = []
        self.samples = self.tokens = self.utterances = 0
        self.refresh()
        if not self.names:
            raise FileNotFoundError(f"{folder} holds no tokenised part; run training.tokenize_store first")

    def refresh(self) -> None:
        """Take in whole parts tokenised since the last call, as many as fit."""
        for name in part_names(self.folder):
            path = self.folder / f"tokens-{name}.npz"
            if name in self.names or not path.exists():
                continue
            part = Store.open(self.folder, [name])
            if self.samples + int(part.start[-1]) > self.capacity or self.utterances + len(part) > len(self.first):
                break
            with np.load(path, allow_pickle=False) as file:
                self._append(part, file["token"], file["tokens"])
            self.names.append(name)
        self.ready.copy_(torch.tensor([self.tokens, self.utterances]))

    def _append(self, part: Store, token: NDArray[np.int16], counts: NDArray[np.int64]) -> None:
        first = np.cumsum(counts) - counts
        offset = (np.arange(len(token)) - np.repeat(first, counts)) * SAMPLES_PER_TOKEN
        begin = np.repeat(part.start[:-1], counts) + offset
        filled = (np.repeat(part.start[1:], counts) - begin).clip(max=SAMPLES_PER_TOKEN)
        tokens = slice(self.tokens, self.tokens + len(token))
        _put(self.pcm, self.samples, part.pcm())
        _put(self.token, self.tokens, token)
        _put(self.begin, self.tokens, begin + self.samples)
        _put(self.filled, self.tokens, filled)
        self.part[tokens] = len(self.names)
        _put(self.first, self.utterances, first + self.tokens)
        self.samples += int(part.start[-1])
        self.tokens += len(token)
        self.utterances += len(counts)

    def rows(self, rows: int, tokens: int, share_at_start: float) -> tuple[Tensor, Tensor, Tensor]:
        """Random rows: tokens [rows, tokens] int64, audio with the mel's margin [rows, tokens * 960 + 1440], and part
        [rows], the index in `names` of the part a row begins in. `share_at_start` of them begin with an utterance."""
        device, last = self.token.device, self.ready[0] - tokens - 1
        anywhere = 1 + (torch.rand(rows, device=device, dtype=torch.float64) * (last - 1)).long()
        chosen = (torch.rand(rows, device=device, dtype=torch.float64) * self.ready[1]).long()
        at_start = torch.minimum(self.first[chosen], last).clamp_min(1)
        begin = torch.where(torch.rand(rows, device=device) < share_at_start, at_start, anywhere)
        which = begin[:, None] + torch.arange(tokens, device=device)
        return self.token[which], self.audio(begin, tokens), self.part[begin]

    def audio(self, begin: Tensor, tokens: int) -> Tensor:
        """The audio under `tokens` tokens from each of `begin` on, with the mel's margin: [rows, tokens * 960 + 1440].

        `begin` is at least 1 and at most the number of tokens - `tokens` - 1: a token of context lies on either side.
        """
        which = begin[:, None] + torch.arange(-1, tokens + 1, device=begin.device)
        offset = torch.arange(SAMPLES_PER_TOKEN, device=begin.device)
        audio = self.pcm[self.begin[which][..., None] + offset].float() / 32768.0
        audio = torch.where(offset < self.filled[which][..., None], audio, 0.0).flatten(1)
        spare = SAMPLES_PER_TOKEN - FLOW_MARGIN
        return F.pad(audio, (-spare, -spare))


def _put(flat: Tensor, at: int, values: NDArray[np.generic]) -> None:
    flat[at : at + len(values)].copy_(torch.from_numpy(values))
