"""Trains the HiFT vocoder: mel to audio, with a pitch head on the teacher's own contour.

HiFTNet's objective (Li et al., arXiv:2309.09493) with HiFi-GAN's discriminators: spectral distance alone at first, then
with adversarial and feature matching losses. The excitation is driven by the teacher's pitch until the pitch head has
learnt it. The mel is computed from each crop's audio, so no tokens are needed.

    python -m training.hift --spec training/nano/cosyvoice2.yaml --store DATA/store --out RUN --minutes 9

trains, taking in parts of a store that is still being made, and writes what `training.loop` says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.hift import HiFTGenerator
from lighttts.models.hift_config import HiFTConfig
from lighttts.models.section import Section
from lighttts.models.spec import parse as parse_yaml
from lighttts.models.stft import FourierFrames
from lighttts.models.weights import load_into
from training.discriminators import Discriminators, adversarial_loss, discriminator_loss, matching_loss, split
from training.features import FLOW_HOP, FLOW_MARGIN, FlowMel
from training.loop import Plan, add_options, parse, run
from training.optimise import Average, Replay, adamw, autocast, set_rates
from training.spectra import SpectralDistance
from training.speech import Speech

GENERATOR_RATE, PITCH_RATE, DISCRIMINATOR_RATE = 5e-4, 1e-3, 3e-4
BETAS = (0.8, 0.99)
CLIP = 1000.0  # of the generator's gradient: only what would throw a run off
SPECTRAL_WEIGHT, MATCHING_WEIGHT = 30.0, 2.0
PITCH_SCALE = 100.0  # Hz that count as one in the pitch loss
TEACHER_PITCH_UNTIL, ADVERSARIAL_FROM = 0.06, 0.12
AVERAGE_DECAY, AVERAGE_EVERY = 0.99, 10
FIRST_PITCH, PITCH_WEIGHTS = 120.0, 50.0
FIRST_LOG_MAGNITUDE = -4.0


class MatrixFourier(FourierFrames):
    """Synthesis by matrix product: convolutions may run in tf32, whose rounding would be heard; products do not."""

    def synthesise(self, spectra: Tensor) -> Tensor:
        frames = (self.synthesis[:, 0].T @ spectra).transpose(1, 2)
        rows, count, _ = frames.shape
        pieces = self.size // self.hop
        hops = frames.reshape(rows, count, pieces, self.hop)
        added = sum(F.pad(hops[:, :, k], (0, 0, k, pieces - 1 - k)) for k in range(pieces))
        assert isinstance(added, Tensor)
        windows = F.conv_transpose1d(torch.ones_like(spectra[:1, :1]), self.energy, stride=self.hop)[:, 0]
        half = self.size // 2
        return added.flatten(1)[:, half:-half] / windows[:, half:-half]


def read_config(spec: Path) -> HiFTConfig:
    """The vocoder's dimensions from a model's yaml."""
    return HiFTConfig.read(Section(parse_yaml(spec.read_text(), str(spec)), str(spec)))


def new_generator(config: HiFTConfig) -> HiFTGenerator:
    """A vocoder to start from: quiet, with small last layers, and a pitch head that starts near a voice.

    The head's output is an absolute value: were it near zero, its gradient would push it across and back.
    """
    model = HiFTGenerator(config)
    model.fourier = MatrixFourier(config.fourier_size, config.fourier_hop)
    with torch.no_grad():
        for layer in (*model.ups, model.conv_post):
            assert isinstance(layer.weight, Tensor)
            layer.weight = torch.randn_like(layer.weight) * 0.01  # through weight_norm: sets direction and length
        assert isinstance(model.conv_post.bias, Tensor)
        model.conv_post.bias[: config.fourier_size // 2 + 1] = FIRST_LOG_MAGNITUDE
        model.f0_predictor.classifier.weight.mul_(PITCH_WEIGHTS)
        model.f0_predictor.classifier.bias.fill_(FIRST_PITCH)
    return model


class Trainer:
    """Networks, data and optimisers of one run; `warm_step` and `adversarial_step` are captured as CUDA graphs."""

    losses = ("spectral", "pitch", "matching", "adversarial", "discriminator", "gradient")

    def __init__(self, model: HiFTGenerator, speech: Speech, rows: int, frames: int) -> None:
        """`rows` crops of `frames` mel frames a batch."""
        self.model, self.speech, self.rows, self.frames = model, speech, rows, frames
        self.device = model.device
        self.judges = Discriminators().to(self.device)
        self.mel, self.distance = FlowMel().to(self.device), SpectralDistance().to(self.device)
        pitch = list(model.f0_predictor.parameters())
        self.voice = [p for name, p in model.named_parameters() if not name.startswith("f0_predictor.")]
        self.generator_optimizer = adamw([(self.voice, GENERATOR_RATE), (pitch, PITCH_RATE)], BETAS)
        self.judge_optimizer = adamw([(self.judges.parameters(), DISCRIMINATOR_RATE)], BETAS)
        self.average = Average(model, AVERAGE_DECAY)
        self.teacher_pitch = torch.ones((), dtype=torch.bool, device=self.device)
        self.warm, self.adversarial = (Replay(f, self.device) for f in (self.warm_step, self.adversarial_step))
        self.experienced = False  # weights that need no warming up
        self.steps = 0

    def generate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Audio of a fresh batch of mel, the real audio [B, N], and the pitch loss."""
        with torch.no_grad():
            audio, pitch = self.speech.crops(self.rows, self.frames)
            mel = self.mel(audio, with_margin=True).transpose(1, 2)
            real = audio[:, FLOW_MARGIN:-FLOW_MARGIN]
        guess = self.model.pitch(mel)
        source = self.model.m_source(torch.where(self.teacher_pitch, pitch, guess.detach()), torch.randn_like(real))
        return self.model.decode(mel, source), real, F.l1_loss(guess, pitch) / PITCH_SCALE

    def warm_step(self) -> Tensor:
        """One update by spectral distance and pitch alone."""
        fake, real, pitch = self.generate()
        spectral = self.distance(fake, real)
        norm = self._update_generator(SPECTRAL_WEIGHT * spectral + pitch)
        nothing = torch.zeros_like(norm)
        return torch.stack([spectral.detach(), pitch.detach(), nothing, nothing, nothing, norm])

    def adversarial_step(self) -> Tensor:
        """One update of the discriminators and the generator, on one pass through the discriminators."""
        fake, real, pitch = self.generate()
        with autocast(self.device):
            judged_real, judged_fake = split(self.judges(torch.cat([real, fake])))
            adversarial, matching = adversarial_loss(judged_fake), matching_loss(judged_real, judged_fake)
            judging = discriminator_loss(judged_real, judged_fake)
        spectral = self.distance(fake, real)
        self.judge_optimizer.zero_grad(set_to_none=True)
        # Each loss goes to its own network's weights only, so one pass through the discriminators serves both.
        torch.autograd.backward(judging, inputs=list(self.judges.parameters()), retain_graph=True)
        norm = self._update_generator(SPECTRAL_WEIGHT * spectral + pitch + MATCHING_WEIGHT * matching + adversarial)
        self.judge_optimizer.step()
        losses = (spectral, pitch, matching, adversarial, judging, norm)
        return torch.stack([loss.detach().float() for loss in losses])

    def _update_generator(self, loss: Tensor) -> Tensor:
        self.generator_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=list(self.model.parameters()))
        norm: Tensor = nn.utils.clip_grad_norm_(self.voice, CLIP, foreach=True)
        self.generator_optimizer.step()
        return norm

    def schedule(self, progress: float, rate: float) -> None:
        """Rates, pitch source and average as they are to be; once a step, before it."""
        set_rates(self.generator_optimizer, rate)
        set_rates(self.judge_optimizer, rate)
        self.teacher_pitch.fill_(progress < TEACHER_PITCH_UNTIL and not self.experienced)
        self.steps += 1
        if self.steps % AVERAGE_EVERY == 0:
            self.average.update(restart=progress < 2 * ADVERSARIAL_FROM)

    def advance(self, progress: float, rate: float) -> Tensor:
        self.schedule(progress, rate)
        warm = progress < ADVERSARIAL_FROM and not self.experienced
        return self.warm() if warm else self.adversarial()

    def refresh(self) -> None:
        self.speech.refresh()

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "judges": self.judges.state_dict(),
            "average": self.average.state(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "judge_optimizer": self.judge_optimizer.state_dict(),
            "experienced": self.experienced,
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.judges.load_state_dict(state["judges"])
        self.average.load(state["average"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        self.experienced = state["experienced"]
        self.steps = state["steps"]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """The generator's; discriminators are not shipped and begin anew, against it from the first step on."""
        load_into(self.model, weights, "hift.pt")
        self.average.update(restart=True)
        self.experienced = True

    def weights(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **self.average.state()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="the model's cosyvoice2.yaml")
    parser.add_argument("--store", type=Path, required=True)
    add_options(parser)
    parser.add_argument("--hours", type=float, default=30.0, help="of audio to hold on the device")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--frames", type=int, default=40, help="mel frames of a crop")
    arguments = parse(parser)
    run(build(arguments), Plan.of("hift", arguments))


def build(arguments: argparse.Namespace) -> Trainer:
    """The trainer of the command line's arguments; waits for the store's first part."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    speech = Speech(arguments.store, arguments.hours, device)
    while not speech.refresh() or speech.samples < 2 * arguments.frames * FLOW_HOP:
        time.sleep(1.0)
    return Trainer(new_generator(read_config(arguments.spec)).to(device), speech, arguments.rows, arguments.frames)


if __name__ == "__main__":
    main()
