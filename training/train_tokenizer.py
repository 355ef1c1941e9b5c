"""Train the speech tokenizer on the teacher's audio and alignments.

    python -m training.train_tokenizer --store DATA/store --out RUN --minutes 1.8

Losses, from the quantised code: cross-entropy of the phoneme at each 10 ms, L1 of the log-mel, voicing and pitch.
Half of the rows are heard through another vocal tract (frequency warp) or with noise while the targets stay the
teacher's, so that tokens of other speakers mean the same sounds. Writes what `training.loop` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.weights import load_into
from training.features import Resample, WhisperMel
from training.loop import Plan, add_options, parse, run
from training.optimise import Average, Replay, adamw, autocast, set_rates
from training.speech import pitch_at
from training.store import FRAME, Store, part_names
from training.tokenizer import FRAMES_A_TOKEN, Decoder, Encoder, codes, quantise, to_index

PAUSE, IGNORED = 16, 255
STRESS = (156, 157)
LENGTH_MARK = 158
PUNCTUATION_TO = 16  # ids up to the space are marks: silence, or nothing
SHORT_PAUSE = 4  # frames of 12.5 ms up to which a mark or space is no pause
HOP = 240  # samples a feature frame at 24 kHz
TOKENS_A_ROW = 75
PEAK_RATE = 1.5e-3
AVERAGE_DECAY, AVERAGE_FROM = 0.999, 500


def frame_labels(phone: NDArray[np.uint8], frames: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The phoneme heard in each frame of 12.5 ms: stress marks count as the sound after them, length marks as the one
    before, marks and spaces as a pause if they last and as unknown (255) if not."""
    label = phone.astype(np.int64)
    for i in range(len(label) - 2, -1, -1):
        if phone[i] in STRESS:
            label[i] = label[i + 1]
    long = np.flatnonzero(phone == LENGTH_MARK)
    label[long] = label[np.maximum(long - 1, 0)]
    marks = label <= PUNCTUATION_TO
    label[marks] = np.where(frames[marks] > SHORT_PAUSE, PAUSE, IGNORED)
    return np.repeat(label.astype(np.uint8), frames)


class Rows:
    """Random stretches of some utterances, one after the other, with the labels of every feature frame."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.pcm = torch.from_numpy(store.pcm()).to(device)
        self.f0 = torch.from_numpy(store.f0).to(device)
        self.label = torch.from_numpy(frame_labels(store.phone, store.frames)).to(device)

    def draw(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Audio [rows, tokens * 960] float32; phoneme [rows, frames] int64; pitch [rows, frames] Hz, 0 unvoiced."""
        device, frames = self.pcm.device, TOKENS_A_ROW * FRAMES_A_TOKEN
        room = len(self.pcm) - frames * HOP
        start = (torch.rand(rows, device=device, dtype=torch.float64) * room).long()
        audio = self.pcm[start[:, None] + torch.arange(frames * HOP, device=device)].float() / 32768.0
        centre = start[:, None] + HOP // 2 + HOP * torch.arange(frames, device=device)
        return audio, self.label[centre // FRAME].long(), pitch_at(self.f0, centre)


def another_speaker(mel: Tensor) -> Tensor:
    """Log-mel [B, bands, T] as another vocal tract, level and room would make it; half of the rows stay as they are."""
    rows, bands, _ = mel.shape
    factor = 1 + (torch.rand(rows, 1, device=mel.device) - 0.5) * 0.28
    place = (torch.arange(bands, device=mel.device) * factor).clamp(max=bands - 1)
    below = place.floor().long().clamp(max=bands - 2)
    share = (place - below)[..., None]
    low = torch.gather(mel, 1, below[..., None].expand_as(mel))
    high = torch.gather(mel, 1, (below + 1)[..., None].expand_as(mel))
    changed = torch.lerp(low, high, share) + (torch.rand(rows, 1, 1, device=mel.device) - 0.5) * 0.3
    floor = -1.2 + 0.8 * torch.rand(rows, 1, 1, device=mel.device) + 0.06 * torch.randn_like(mel)
    changed = torch.maximum(changed, floor)
    return torch.where(torch.rand(rows, 1, 1, device=mel.device) < 0.5, changed, mel)


def losses(decoded: tuple[Tensor, Tensor, Tensor], label: Tensor, mel: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
    """The loss to minimise and what it is made of: phone, mel (nats), voicing, pitch (octaves), phoneme accuracy."""
    logits, guess, voice = (x.float() for x in decoded)
    heard = label != IGNORED
    phone = F.cross_entropy(logits.flatten(0, 1), torch.where(heard, label, -100).flatten(), label_smoothing=0.05)
    spectrum = (guess - mel.transpose(1, 2)).abs().mean() * 9.21  # four tenfolds a unit, in nats
    voiced = (pitch > 0).float()
    voicing = F.binary_cross_entropy_with_logits(voice[..., 0], voiced)
    octaves = torch.log2(pitch.clamp_min(40.0) / 180.0)
    tone = ((voice[..., 1] - octaves).abs() * voiced).sum() / voiced.sum().clamp_min(1.0)
    right = ((logits.argmax(-1) == label) & heard).sum() / heard.sum()
    total = phone + 0.5 * spectrum + 0.3 * voicing + tone
    return total, torch.stack([phone, spectrum, voicing, tone, right]).detach()


class Trainer:
    """Encoder, decoder, optimiser and one step of training on rows drawn at random."""

    losses = ("phone", "mel", "voicing", "pitch", "accuracy", "codes")

    def __init__(self, rows: Rows, batch: int, device: torch.device) -> None:
        self.rows, self.batch, self.device = rows, batch, device
        self.encoder, self.decoder = Encoder().to(device), Decoder().to(device)
        self.mel, self.resample = WhisperMel().to(device), Resample(2, 3).to(device)
        self.both = nn.ModuleList([self.encoder, self.decoder])
        self.optimizer = adamw([(self.both.parameters(), PEAK_RATE)], (0.9, 0.98))
        self.average = Average(self.both, AVERAGE_DECAY)
        self.lengths = torch.full((batch,), TOKENS_A_ROW * FRAMES_A_TOKEN, device=device, dtype=torch.int64)
        self.replay = Replay(self.step, device)
        self.steps = 0

    def step(self) -> Tensor:
        """One update on a fresh batch."""
        audio, label, pitch = self.rows.draw(self.batch)
        mel = self.mel(self.resample(audio))
        with autocast(self.device):
            z = self.encoder(another_speaker(mel), self.lengths)
        with autocast(self.device):
            q = quantise(z.float(), self.encoder.levels)
            decoded = self.decoder(q)
        total, parts = losses(decoded, label, mel, pitch)
        self.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.both.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        index = to_index(q.detach(), self.encoder.levels).flatten()
        used = torch.zeros(codes(), device=self.device).index_fill_(0, index, 1.0)
        return torch.cat([parts, used.sum()[None]])

    def advance(self, progress: float, rate: float) -> Tensor:
        set_rates(self.optimizer, rate)
        result = self.replay()
        self.steps += 1
        self.average.update(restart=self.steps < AVERAGE_FROM)
        return result

    def refresh(self) -> None:
        """Nothing: the hours to train on are there from the start."""

    def state(self) -> dict[str, object]:
        return {
            "both": self.both.state_dict(),
            "average": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.both.load_state_dict(state["both"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """The encoder's; the decoder is not shipped and begins anew."""
        load_into(self.encoder, weights, "tokenizer.pt")
        self.average.update(restart=True)

    def weights(self) -> dict[str, Tensor]:
        """The averaged encoder."""
        return {k.removeprefix("0."): v for k, v in self.average.state().items() if k.startswith("0.")}


def first_hours(folder: Path, hours: float) -> Store:
    """The parts of a store that are finished, up to some hours."""
    names: list[str] = []
    total = 0.0
    for name in part_names(folder):
        names.append(name)
        total += Store.open(folder, [name]).hours
        if total >= hours:
            break
    return Store.open(folder, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    add_options(parser)
    parser.add_argument("--hours", type=float, default=12.0, help="of audio to train on")
    parser.add_argument("--batch", type=int, default=96)
    arguments = parse(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = Rows(first_hours(arguments.store, arguments.hours), device)
    run(Trainer(rows, arguments.batch, device), Plan.of("tokenizer", arguments, log_every=100))


if __name__ == "__main__":
    main()
