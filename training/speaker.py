"""Trains the speaker encoder to tell synthetic speakers apart; it ships as `campplus.onnx`.

Additive margin softmax (Wang et al. 2018) over the plain voice and the speakers of `training.warp`.

``python -m training.speaker --store DATA --warped WARPED --minutes 4 --out RUN`` trains and writes `RUN/speaker.pt` and
`RUN/campplus.onnx`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.loop import Clock, LossLog, adamw, rate_factor, save, set_rates
from training.speaker_encoder import EMBEDDING, Listener, SpeakerEncoder
from training.speaker_onnx import write_onnx
from training.speech import Speech
from training.store import part_names

CROP_SECONDS = 2.0
SCALE, MARGIN = 24.0, 0.15


def margin_loss(embedding: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    """Additive margin softmax: cosine to the right class must exceed all others by `MARGIN`."""
    cosine = F.normalize(embedding, dim=1) @ F.normalize(classes, dim=1).T
    return F.cross_entropy(SCALE * (cosine - MARGIN * F.one_hot(label, len(classes))), label)


class Speakers:
    """Rows of audio with a speaker label: the plain voice is speaker 0, each warped part another."""

    def __init__(self, store: Path, warped: Path, minutes_each: float, device: torch.device) -> None:
        self.voices = [Speech(store, minutes_each / 60, device)]
        self.voices += [Speech(warped, minutes_each / 60, device, [name]) for name in part_names(warped)]
        for voice in self.voices:
            voice.refresh()

    def rows(self, each: int) -> tuple[Tensor, Tensor]:
        """`each` crops of every speaker: audio [speakers * each, N] float32, label int64."""
        frames = int(CROP_SECONDS * 50)
        audio = torch.cat([voice.crops(each, frames)[0] for voice in self.voices])
        return audio, torch.arange(len(self.voices), device=audio.device).repeat_interleave(each)


def train(speakers: Speakers, minutes: float, out: Path, device: torch.device) -> SpeakerEncoder:
    """Train for `minutes`; batch norms see one balanced batch of all speakers a step."""
    listener = Listener(SpeakerEncoder()).to(device).train()
    classes = nn.Parameter(torch.randn(len(speakers.voices), EMBEDDING, device=device))
    optimizer = adamw([([*listener.parameters(), classes], 2e-3)], (0.9, 0.98))
    log, clock, step = LossLog(out / "speaker.csv", ["loss", "accuracy"]), Clock(minutes), 0
    while clock.progress < 1:
        set_rates(optimizer, rate_factor(clock.progress))
        audio, label = speakers.rows(2)
        embedding = listener(audio)
        loss = margin_loss(embedding, classes, label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if step % 20 == 0:
            right = (F.normalize(embedding, dim=1) @ F.normalize(classes, dim=1).T).argmax(1) == label
            log.write(step, clock.spent, torch.stack([loss.detach(), right.float().mean()]))
    return listener.encoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--warped", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    encoder = train(Speakers(arguments.store, arguments.warped, 5.0, device), arguments.minutes, arguments.out, device)
    save(arguments.out / "speaker.pt", dict(encoder.cpu().state_dict()))
    write_onnx(encoder, arguments.out / "campplus.onnx")


if __name__ == "__main__":
    main()
