"""Trains the speaker encoder to tell synthetic speakers apart; it ships as `campplus.onnx`.

Additive margin softmax (Wang et al. 2018) over the plain voice and the speakers of `training.warp`.

    python -m training.speaker --store DATA/store --warped DATA/warped --out RUN --minutes 1.4

writes what `training.loop` says, and at the end `RUN/campplus.onnx`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.weights import load_into
from training.loop import Plan, add_options, parse, run
from training.optimise import adamw, set_rates
from training.speaker_encoder import EMBEDDING, Listener, SpeakerEncoder, load_speaker
from training.speaker_onnx import write_onnx
from training.speech import Speech
from training.store import part_names

CROP_SECONDS = 2.0
SCALE, MARGIN = 24.0, 0.15
PEAK_RATE = 2e-3
CROPS_EACH = 2
MINUTES_EACH = 5.0


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


class Trainer:
    """Encoder, class vectors and optimiser; batch norms see one balanced batch of all speakers a step."""

    losses = ("loss", "accuracy")

    def __init__(self, speakers: Speakers, device: torch.device) -> None:
        self.speakers, self.device = speakers, device
        self.listener = Listener(SpeakerEncoder()).to(device).train()
        self.classes = nn.Parameter(torch.randn(len(speakers.voices), EMBEDDING, device=device))
        self.optimizer = adamw([([*self.listener.parameters(), self.classes], PEAK_RATE)], (0.9, 0.98))
        self.steps = 0

    def advance(self, progress: float, rate: float) -> Tensor:
        set_rates(self.optimizer, rate)
        audio, label = self.speakers.rows(CROPS_EACH)
        embedding = self.listener(audio)
        loss = margin_loss(embedding, self.classes, label)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.steps += 1
        right = (F.normalize(embedding, dim=1) @ F.normalize(self.classes, dim=1).T).argmax(1) == label
        return torch.stack([loss.detach(), right.float().mean()])

    def refresh(self) -> None:
        """Nothing: each speaker's minutes are there from the start."""

    def state(self) -> dict[str, object]:
        return {
            "encoder": self.listener.encoder.state_dict(),
            "classes": self.classes.detach(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.listener.encoder.load_state_dict(state["encoder"])
        with torch.no_grad():
            self.classes.copy_(state["classes"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        load_into(self.listener.encoder, weights, "speaker.pt")

    def weights(self) -> dict[str, Tensor]:
        """The encoder's, with its running statistics."""
        return dict(self.listener.encoder.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--warped", type=Path, required=True)
    add_options(parser)
    arguments = parse(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run(
        Trainer(Speakers(arguments.store, arguments.warped, MINUTES_EACH, device), device),
        Plan.of("speaker", arguments, log_every=20),
    )
    write_onnx(load_speaker(arguments.out / "speaker.pt"), arguments.out / "campplus.onnx")


if __name__ == "__main__":
    main()
