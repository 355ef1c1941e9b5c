"""Train the speech tokenizer on the teacher's audio and alignments.

    python -m training.train_tokenizer --store DATA/store --out RUN/tokenizer --minutes 2.5

Losses, from the quantised code: cross-entropy of the phoneme at each 10 ms, L1 of the log-mel, voicing and pitch.
Half of the rows are heard through another vocal tract (frequency warp) or with noise while the targets stay the
teacher's, so that tokens of other speakers mean the same sounds. A run cut short resumes from ``checkpoint.pt``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.features import Resample, WhisperMel
from training.loop import Average, Clock, LossLog, Replay, adamw, autocast, rate_factor, save, set_rates
from training.speech import pitch_at
from training.store import FRAME, Store, part_names
from training.tokenizer import FRAMES_A_TOKEN, Decoder, Encoder, quantise, to_index

PAUSE, IGNORED = 16, 255
STRESS = (156, 157)
LENGTH_MARK = 158
PUNCTUATION_TO = 16  # ids up to the space are marks: silence, or nothing
SHORT_PAUSE = 4  # frames of 12.5 ms up to which a mark or space is no pause
HOP = 240  # samples a feature frame at 24 kHz
TOKENS_A_ROW = 75
LOSSES = ("phone", "mel", "voicing", "pitch", "accuracy", "codes")


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

    def __init__(self, rows: Rows, batch: int, device: torch.device) -> None:
        self.rows, self.batch, self.device = rows, batch, device
        self.encoder, self.decoder = Encoder().to(device), Decoder().to(device)
        self.mel, self.resample = WhisperMel().to(device), Resample(2, 3).to(device)
        self.both = nn.ModuleList([self.encoder, self.decoder])
        self.optimizer = adamw([(self.both.parameters(), 1.5e-3)], (0.9, 0.98))
        self.average = Average(self.both, 0.999)
        self.lengths = torch.full((batch,), TOKENS_A_ROW * FRAMES_A_TOKEN, device=device, dtype=torch.int64)

    def step(self) -> Tensor:
        audio, label, pitch = self.rows.draw(self.batch)
        mel = self.mel(self.resample(audio))
        with autocast(self.device):
            z = self.encoder(another_speaker(mel), self.lengths)
        with autocast(self.device):
            q = quantise(z.float(), self.encoder.levels)
            decoded = self.decoder(q)
        total, parts = losses(decoded, label, mel, pitch)
        self.optimizer.zero_grad(set_to_none=False)
        total.backward()
        nn.utils.clip_grad_norm_(self.both.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        used = torch.zeros(int(1e4), device=self.device).index_fill_(
            0, to_index(q.detach(), self.encoder.levels).flatten(), 1.0
        )
        return torch.cat([parts, used.sum()[None]])

    def state(self) -> dict[str, object]:
        return {
            "both": self.both.state_dict(),
            "average": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.both.load_state_dict(state["both"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def load_encoder(path: Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a finished or interrupted run (``checkpoint.pt`` or ``encoder.pt``), with averaged weights."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "average" in state:
        state = {k.removeprefix("0."): v for k, v in state["average"].items() if k.startswith("0.")}
    encoder = Encoder()
    encoder.load_state_dict({"levels": encoder.levels, **{k: v.float() for k, v in state.items()}})
    return encoder.to(device).eval()


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    hours = 0.0
    for name in part_names(args.store):
        hours += Store.open(args.store, [name]).hours
        names.append(name)
        if hours >= args.hours:
            break
    trainer = Trainer(Rows(Store.open(args.store, names), device), args.batch, device)
    checkpoint, step, spent = args.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        trainer.load(saved["trainer"])
        step, spent = saved["step"], saved["spent"]
    clock, log = Clock(args.minutes, spent), LossLog(args.out / "loss.csv", LOSSES)
    replay = Replay(trainer.step, device)
    while clock.progress < 1.0 and step < args.steps:
        set_rates(trainer.optimizer, rate_factor(clock.progress))
        result = replay()
        step += 1
        trainer.average.update(restart=step < 500)
        if step % args.log_every == 0:
            print("tokenizer", step, log.write(step, clock.spent, result), flush=True)
        if step % (20 * args.log_every) == 0:
            save(checkpoint, {"trainer": trainer.state(), "step": step, "spent": clock.spent})
    save(checkpoint, {"trainer": trainer.state(), "step": step, "spent": clock.spent})
    averaged = {k.removeprefix("0."): v.half() for k, v in trainer.average.state().items() if k.startswith("0.")}
    save(args.out / "encoder.pt", dict(averaged))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=1 << 30)
    parser.add_argument("--hours", type=float, default=12.0, help="of audio to train on")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
