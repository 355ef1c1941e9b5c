"""The store's audio, pitch and speech tokens on the training device, cut into rows by index.

Everything lies in flat tensors that stay in place, and the number of samples ready is itself a tensor: cutting rows
needs no copy from or to the host, so it can be part of a captured training step while `refresh` lets the data grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.features import FLOW_HOP, FLOW_MARGIN, SAMPLES_PER_TOKEN
from training.store import FRAME, SAMPLE_RATE, Store, part_names

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
    """Speech tokens with the audio under each, as one stream of utterances cut into rows of equal length.

    A row begins at an utterance's start or anywhere, and runs on into the utterances that follow: no padding, long
    contexts, and the joins are the pauses between sentences.
    """

    def __init__(self, folder: Path, hours: float, device: torch.device) -> None:
        """Take whole tokenised parts until `hours` are reached. Raises FileNotFoundError if there is none."""
        pcm, token, begin, filled, first, part_of = [], [], [], [], [], []
        self.names: list[str] = []
        base = tokens = 0
        for name in part_names(folder):
            path = folder / f"tokens-{name}.npz"
            if not path.exists() or base >= hours * 3600 * SAMPLE_RATE:
                continue
            part = Store.open(folder, [name])
            with np.load(path, allow_pickle=False) as file:
                token.append(file["token"].astype(np.int32))
                counts = file["tokens"]
            offset = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            begin.append(np.repeat(part.start[:-1], counts) + offset * SAMPLES_PER_TOKEN + base)
            filled.append(np.repeat(part.start[1:], counts) + base - begin[-1])
            first.append(np.cumsum(counts) - counts + tokens)
            part_of.append(np.full(len(token[-1]), len(self.names), np.int16))
            pcm.append(part.pcm())
            base, tokens = base + len(pcm[-1]), tokens + len(token[-1])
            self.names.append(name)
        if not self.names:
            raise FileNotFoundError(f"{folder} holds no tokenised part; run training.tokenize_store first")
        self.pcm = torch.zeros(base + SAMPLES_PER_TOKEN, dtype=torch.int16, device=device)
        for at, piece in zip(np.cumsum([0, *map(len, pcm)]), pcm, strict=False):
            self.pcm[int(at) : int(at) + len(piece)].copy_(torch.from_numpy(piece))
        self.token = torch.from_numpy(np.concatenate(token)).long().to(device)
        self.begin = torch.from_numpy(np.concatenate(begin)).to(device)
        self.filled = torch.from_numpy(np.concatenate(filled).clip(max=SAMPLES_PER_TOKEN).astype(np.int16)).to(device)
        self.first = torch.from_numpy(np.concatenate(first)).to(device)
        self.part = torch.from_numpy(np.concatenate(part_of)).long().to(device)

    def rows(self, rows: int, tokens: int, share_at_start: float) -> tuple[Tensor, Tensor, Tensor]:
        """Random rows: tokens [rows, tokens] int64, audio with the mel's margin [rows, tokens * 960 + 1440], and part
        [rows], the index in `names` of the part a row begins in. `share_at_start` of them begin with an utterance."""
        device, last = self.token.device, len(self.token) - tokens - 1
        anywhere = torch.randint(1, last, (rows,), device=device)
        at_start = self.first[torch.randint(0, len(self.first), (rows,), device=device)].clamp(1, last)
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
