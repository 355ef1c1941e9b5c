"""Solver of the conditional flow: fixed noise to mel in a few Euler steps with classifier-free guidance.

Flow matching: Lipman et al., arXiv:2210.02747; guidance as in VoiceBox, arXiv:2306.15687. The schedule, the guidance
formula and the noise are those of CosyVoice's `flow/flow_matching.py` (`CausalConditionalCFM`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lighttts.models.dit import DiT
from lighttts.models.estimator import CausalConditionalDecoder
from lighttts.models.streaming import StreamBatch, number_layers

NOISE_FRAMES = 15_000
"""Length of the noise table, hence of the longest mel, prompt included: 300 s at 50 frames a second."""

GUIDANCE_HALVES = 2
"""Each step runs the estimator with its conditions and without them."""


Estimator = TypeVar("Estimator", CausalConditionalDecoder, DiT)


@dataclass(frozen=True)
class SolverConfig:
    """`guidance`: weight of the conditional half over the unconditional; `steps`: upstream takes ten."""

    guidance: float
    steps: int = 10


def fixed_noise(channels: int) -> Tensor:
    """The noise every mel starts from, (NOISE_FRAMES, channels) float32, indexed by absolute frame.

    Upstream draws it as (1, channels, NOISE_FRAMES) right after seeding torch with 0.
    """
    table = torch.randn(1, channels, NOISE_FRAMES, generator=torch.Generator().manual_seed(0))
    return table[0].t().contiguous()


def cosine_times(steps: int) -> tuple[Tensor, Tensor]:
    """Times t (steps,) and step lengths (steps,), float32, denser towards the noise.

    Times are summed up from the rounded lengths, as upstream does.
    """
    ends = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * torch.pi)
    times, lengths = [ends[0]], [ends[1] - ends[0]]
    for end in ends[2:]:
        times.append(times[-1] + lengths[-1])
        lengths.append(end - times[-1])
    return torch.stack(times), torch.stack(lengths)


class CausalConditionalCFM(nn.Module, Generic[Estimator]):
    """An estimator with its solver. The noise table and the schedule are float32 buffers, not in the weights."""

    noise: Tensor
    times: Tensor
    lengths: Tensor

    def __init__(self, estimator: Estimator, mel: int, solver: SolverConfig) -> None:
        super().__init__()
        self.config = solver
        self.estimator: Estimator = estimator
        self.shape = number_layers(self.estimator, passes=solver.steps, rows=GUIDANCE_HALVES)
        times, lengths = cosine_times(solver.steps)
        self.register_buffer("noise", fixed_noise(mel), persistent=False)
        self.register_buffer("times", times, persistent=False)
        self.register_buffer("lengths", lengths, persistent=False)

    def noise_at(self, starts: Sequence[int], frames: int) -> Tensor:
        """The noise of `frames` frames from each start on, (requests, frames, mel); beyond the table its last row."""
        rows = torch.tensor(starts, device=self.noise.device)[:, None] + torch.arange(frames, device=self.noise.device)
        return self.noise[rows.clamp(max=NOISE_FRAMES - 1)]

    def solve(self, mu: Tensor, speaker: Tensor, prompt: Tensor, batch: StreamBatch) -> Tensor:
        """Mel float32 (requests, frames, mel) of the new frames of `batch`.

        `mu`, `prompt`: (requests, frames, mel); `speaker`: (requests, mel). Leaves the pasts in `batch`.
        """
        x = self.noise_at([state.length for state in batch.states], mu.size(1))
        nothing = torch.zeros_like(mu)
        mu, prompt = torch.cat([mu, nothing]), torch.cat([prompt, nothing])
        speaker = torch.cat([speaker, torch.zeros_like(speaker)])
        embedded = self.estimator.time_mlp(self.times)
        for step in range(self.config.steps):
            window = batch.window(step)
            both = x.to(mu.dtype).repeat(GUIDANCE_HALVES, 1, 1)
            velocity = self.estimator(both, mu, speaker, prompt, embedded[step : step + 1], window)
            batch.keep(step, window)
            x = self.follow(x, step, velocity)
        return x

    def follow(self, x: Tensor, step: int | Tensor, velocity: Tensor) -> Tensor:
        """`x` (rows, frames, mel) after an Euler step along `velocity` (GUIDANCE_HALVES x rows, frames, mel).

        `step`: its number, or that of each row, int64 (rows, 1, 1).
        """
        given, free = velocity.float().chunk(GUIDANCE_HALVES)
        return x + self.lengths[step] * ((1 + self.config.guidance) * given - self.config.guidance * free)
