"""Trains the flow: speech tokens to mel by conditional flow matching.

The objective is Matcha-TTS's and CosyVoice2's (Lipman et al., arXiv:2210.02747; Mehta et al., arXiv:2309.03199;
Du et al., arXiv:2412.10117): the estimator learns the velocity from noise to mel under guidance dropout, with random
prompts, with and without the chunk mask of streaming. Beside it the encoder's features are pulled towards the mel
itself, strongly at first, which aligns content early.

    python -m training.flow --spec training/nano/cosyvoice2.yaml --store DATA/store --warped DATA/warped \\
        --speaker RUN/speaker.pt --out RUN --minutes 12

trains, taking in parts of the store as they are tokenised, and writes what `training.loop` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.flow import CausalMaskedDiffWithXvec
from lighttts.models.flow_config import FlowConfig
from lighttts.models.section import Section
from lighttts.models.spec import parse as parse_yaml
from lighttts.models.streaming import Window, chunk_mask
from lighttts.models.weights import load_into
from training.features import FlowMel
from training.loop import Plan, add_options, parse, run
from training.optimise import Average, Replay, adamw, autocast, set_rates
from training.speaker_encoder import Listener, SpeakerEncoder, load_speaker
from training.speech import TokenRows
from training.store import Store

PEAK_RATE = 1e-3
CLIP = 1.0
SIGMA_MIN = 1e-6
EMBEDDING_NOISE = 0.25  # of a unit embedding: prompts of one speaker differ by about a third
PRIOR_START, PRIOR_END = 1.0, 0.1
AVERAGE_DECAY, AVERAGE_EVERY, AVERAGE_FROM = 0.99, 10, 0.3


@dataclass(frozen=True)
class Recipe:
    """What a batch holds: `rows` of `tokens` tokens, `warped_rows` of them of other speakers; the rest are shares."""

    rows: int = 32
    warped_rows: int = 6
    tokens: int = 256  # 512 frames: attention kernels want multiples of 16
    from_utterance_start: float = 0.6
    chunked: float = 0.8
    prompted: float = 0.3
    longest_prompt: float = 0.3
    without_condition: float = 0.2


def read_config(spec: Path) -> FlowConfig:
    """The flow's dimensions from a model's yaml."""
    return FlowConfig.read(Section(parse_yaml(spec.read_text(), str(spec)), str(spec)))


def objective(model: CausalMaskedDiffWithXvec, recipe: Recipe, tokens: Tensor, mel: Tensor, voice: Tensor) -> Tensor:
    """Losses (flow, prior) of a batch: tokens [B, T] int64, mel [B, 2 T, 80] float32, speaker embedding [B, 192]."""
    rows, frames, _ = mel.shape
    whole = torch.rand(rows, device=mel.device) > recipe.chunked
    # A row's last tokens have no look-ahead, as the last ones of a request have none.
    padded = F.pad(tokens, (0, model.config.encoder.look_ahead))
    known = torch.arange(padded.shape[1], device=mel.device) < tokens.shape[1]
    token_window = Window(_mask(whole, tokens.shape[1], model.config.encoder.chunk))
    frame_window = Window(_mask(whole, frames, model.config.estimator.chunk))
    mu = model.features(padded, known.expand(rows, -1), token_window, frame_window)
    speaker = model.speaker(voice)
    kept = (torch.rand(rows, 1, device=mel.device) > recipe.without_condition).to(mu.dtype)
    t = 1 - torch.cos(torch.rand(rows, 1, 1, device=mel.device) * (torch.pi / 2))
    noise = torch.randn_like(mel)
    position = (1 - (1 - SIGMA_MIN) * t) * noise + t * mel
    prompt = mel * _prompt_frames(rows, frames, recipe, mel.device) * kept[..., None]
    embedded = model.decoder.estimator.time_mlp(t[:, 0, 0])
    velocity = model.decoder.estimator(position, mu * kept[..., None], speaker * kept, prompt, embedded, frame_window)
    target = mel - (1 - SIGMA_MIN) * noise
    return torch.stack([F.mse_loss(velocity.float(), target), F.l1_loss(mu.float(), mel)])


def _mask(whole: Tensor, width: int, chunk: int) -> Tensor:
    """Attention masks [B, 1, width, width]: everything for rows that are `whole`, by chunks for the others."""
    length = torch.full((1,), width, device=whole.device)
    return chunk_mask(torch.zeros_like(length), length, 0, width, chunk) | whole[:, None, None, None]


def _prompt_frames(rows: int, frames: int, recipe: Recipe, device: torch.device) -> Tensor:
    """1 where the mel is given as a prompt, [B, frames, 1] float32: a random prefix of some rows."""
    length = torch.rand(rows, 1, device=device) * (recipe.longest_prompt * frames)
    length = length * (torch.rand(rows, 1, device=device) < recipe.prompted)
    return (torch.arange(frames, device=device) < length)[..., None].float()


class Voices:
    """Mean speaker embedding of every part of a token store, from its first minutes."""

    def __init__(self, encoder: SpeakerEncoder, device: torch.device) -> None:
        self.listener = Listener(encoder).to(device)

    @torch.no_grad()
    def of(self, data: TokenRows, crops: int = 24, tokens: int = 100) -> Tensor:
        """[parts, 192], normalised."""
        means = []
        for part in range(len(data.names)):
            inside = (data.part[: data.tokens] == part).nonzero()[:, 0]
            start = inside[:: max(1, len(inside) // crops)][:crops].clamp(1, data.tokens - tokens - 1)
            audio = data.audio(start, tokens)
            means.append(F.normalize(F.normalize(self.listener(audio), dim=1).mean(0), dim=0))
        return torch.stack(means)


class Trainer:
    """Model, data and optimiser of one run; `step` is captured as a CUDA graph."""

    losses = ("flow", "prior", "gradient")

    def __init__(
        self, model: CausalMaskedDiffWithXvec, sources: list[tuple[TokenRows, Tensor, int]], recipe: Recipe
    ) -> None:
        """`sources`: data, the embedding of each of its parts (or the one of all), and rows of it in a batch."""
        self.model, self.sources, self.recipe = model, sources, recipe
        self.device = model.device
        self.mel = FlowMel().to(self.device)
        self.parameters = list(model.parameters())
        self.optimizer = adamw([(self.parameters, PEAK_RATE)], (0.9, 0.98))
        self.average = Average(model, AVERAGE_DECAY)
        self.prior_weight = torch.tensor(PRIOR_START, device=self.device)
        self.replay = Replay(self.step, self.device)
        self.steps = 0

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mel and speaker embedding of a fresh batch."""
        recipe, parts = self.recipe, []
        for data, voices, rows in self.sources:
            tokens, audio, part = data.rows(rows, recipe.tokens, recipe.from_utterance_start)
            parts.append((tokens, audio, voices[part.clamp(max=len(voices) - 1)]))
        tokens, audio, voice = (torch.cat(column) for column in zip(*parts, strict=True))
        scatter = torch.randn_like(voice) * (EMBEDDING_NOISE * voice.shape[1] ** -0.5)
        return tokens, self.mel(audio, with_margin=True).transpose(1, 2), voice + scatter

    @torch.no_grad()
    def prime(self) -> None:
        """Start both outputs at the mean mel, which lies far from zero: biases alone would take long to get there."""
        mean = self.batch()[1].mean((0, 1))
        for layer in (self.model.encoder_proj, self.model.decoder.estimator.final_proj):
            assert layer.bias is not None
            layer.bias.copy_(mean)

    def step(self) -> Tensor:
        """One update on a fresh batch."""
        tokens, mel, voice = self.batch()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            losses = objective(self.model, self.recipe, tokens, mel, voice)
        torch.autograd.backward(losses[0] + self.prior_weight * losses[1])
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimizer.step()
        return torch.cat([losses.detach(), norm[None]])

    def schedule(self, progress: float, rate: float) -> None:
        """Rates, weights and the average as they are to be; once a step, before it."""
        set_rates(self.optimizer, rate)
        self.prior_weight.fill_(PRIOR_START + (PRIOR_END - PRIOR_START) * progress)
        self.steps += 1
        if self.steps % AVERAGE_EVERY == 0:
            self.average.update(restart=progress < AVERAGE_FROM)

    def advance(self, progress: float, rate: float) -> Tensor:
        self.schedule(progress, rate)
        return self.replay()

    def refresh(self) -> None:
        """More of the plain voice; parts of other speakers would need embeddings."""
        self.sources[0][0].refresh()

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        load_into(self.model, weights, "flow.pt")
        self.average.update(restart=True)

    def weights(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **self.average.state()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="the model's cosyvoice2.yaml")
    parser.add_argument("--store", type=Path, required=True, help="tokenised store of the plain voice")
    parser.add_argument("--warped", type=Path, help="tokenised store of training.warp")
    parser.add_argument("--speaker", type=Path, required=True, help="weights of training.speaker")
    add_options(parser)
    parser.add_argument("--hours", type=float, default=90.0, help="of audio to hold on the device")
    parser.add_argument("--rows", type=int, default=Recipe.rows)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="of a row")
    arguments = parse(parser)
    run(build(arguments), Plan.of("flow", arguments))


def build(arguments: argparse.Namespace) -> Trainer:
    """The trainer of the command line's arguments."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    voices = Voices(load_speaker(arguments.speaker), device)
    plain = TokenRows(arguments.store, arguments.hours, device)
    mean = F.normalize(voices.of(plain).mean(0, keepdim=True), dim=1)  # one speaker, one embedding
    others = 0 if arguments.warped is None else max(1, round(arguments.rows * Recipe.warped_rows / Recipe.rows))
    sources = [(plain, mean, arguments.rows - others)]
    if arguments.warped is not None:
        warped = TokenRows(arguments.warped, Store.open(arguments.warped).hours + 0.01, device)
        sources.append((warped, voices.of(warped), others))
    model = CausalMaskedDiffWithXvec(read_config(arguments.spec)).to(device).train()
    trainer = Trainer(model, sources, Recipe(arguments.rows, others, arguments.tokens))
    trainer.prime()
    return trainer


if __name__ == "__main__":
    main()
