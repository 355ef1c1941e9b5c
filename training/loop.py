"""The loop every trainer runs in: a schedule by the wall clock, a loss log, checkpoints, weights as they ship.

GPU time comes in pieces. A run goes on from its checkpoint where there is one; where only the weights came back, they
are what it starts from (`--init`), with fresh moments and a short warm-up.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lighttts.models.weights import load_weights

WARM_UP = 0.02
FLOOR = 0.02
CHECKPOINT_SECONDS, REFRESH_SECONDS = 60.0, 20.0


class Clock:
    """Time spent on a run that may be cut into pieces: `progress` goes from 0 to 1 over `minutes` of training."""

    def __init__(
        self,
        minutes: float,
        spent: float = 0.0,
        *,
        cold: bool = False,
        stop: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent`: seconds trained before. `cold`: the optimiser knows nothing of them. `stop`: seconds from now.

        The clock starts at once.
        """
        self.budget = minutes * 60
        self.now = now
        self.start = now() - spent
        self.end = min(self.budget, spent + stop)
        self.warm_from = spent if cold else 0.0

    @property
    def spent(self) -> float:
        return self.now() - self.start

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.budget)

    @property
    def over(self) -> bool:
        """Whether all minutes are spent or the stop has come."""
        return self.spent >= self.end

    @property
    def rate(self) -> float:
        """Share of the peak learning rate: a short linear rise, then a half cosine down to a small floor."""
        rise = min(1.0, (self.progress - self.warm_from / self.budget + 1e-4) / WARM_UP)
        return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * self.progress)))


@dataclass(frozen=True)
class Plan:
    """How long a run is and where it is kept.

    It writes into `out`: `NAME.csv`, its losses; `NAME-checkpoint.pt`, to go on from; `NAME.pt`, averaged weights as
    they ship. `minutes` of training in all, resumed time included; without them the run ends, its rate low, at `until`.
    `until` (time.time()) stops it in any case, to be resumed. `init`: weights to start from if there is no checkpoint,
    after `spent` minutes of training.
    """

    name: str
    out: Path
    minutes: float | None
    until: float | None = None
    init: Path | None = None
    spent: float = 0.0
    log_every: int = 50

    @classmethod
    def of(cls, name: str, arguments: argparse.Namespace, log_every: int = 50) -> Plan:
        """The plan of a command line with `add_options`."""
        options = ("out", "minutes", "until", "init", "spent")
        return cls(name, **{key: getattr(arguments, key) for key in options}, log_every=log_every)

    def clock(self, spent: float, *, cold: bool) -> Clock:
        left = math.inf if self.until is None else max(0.0, self.until - time.time())
        minutes = (spent + left) / 60 if self.minutes is None else self.minutes
        return Clock(minutes, spent, cold=cold, stop=left)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a `Plan`; `Plan.of` wants at least one of --minutes and --until."""
    parser.add_argument("--out", type=Path, required=True)
    ends = parser.add_argument_group("when to end; at least one")
    ends.add_argument("--minutes", type=float, help="of training in all, resumed time included")
    ends.add_argument("--until", type=float, help="Unix time to stop at; the run's end if there are no --minutes")
    parser.add_argument("--init", type=Path, help="shipped weights to start from if there is no checkpoint")
    parser.add_argument("--spent", type=float, default=0.0, help="minutes that --init was trained for")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's arguments, with the folder to write into made."""
    arguments = parser.parse_args()
    if arguments.minutes is None and arguments.until is None:
        parser.error("give --minutes, --until, or both")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


class Trainer(Protocol):
    """Model, data and optimiser of one run."""

    device: torch.device
    steps: int

    @property
    def losses(self) -> Sequence[str]:
        """Names of what `advance` returns."""

    def advance(self, progress: float, rate: float) -> Tensor:
        """One step, counted in `steps`, at a share of the run and of the peak rates: losses, a vector."""

    def refresh(self) -> None:
        """Take in data that has come since."""

    def state(self) -> dict[str, object]:
        """Everything that `load` needs to go on as if nothing had happened."""

    def load(self, state: Mapping[str, Any]) -> None: ...

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with what `weights` gave, in single precision."""

    def weights(self) -> dict[str, Tensor]:
        """What ships: averaged parameters under upstream's names."""


def run(trainer: Trainer, plan: Plan) -> None:
    """Train until the plan's end. Raises FloatingPointError for losses or weights that are not finite.

    What is on disk then is sound: started again, the run goes on from there.
    """
    clock = begin(trainer, plan)
    first = trainer.steps
    log = LossLog(plan.out / f"{plan.name}.csv", trainer.losses)
    saved = refreshed = clock.spent
    while not clock.over:
        losses = trainer.advance(clock.progress, clock.rate)
        if trainer.steps % plan.log_every == 0:
            values = log.write(trainer.steps, clock.spent, losses)
            named = zip(trainer.losses, values, strict=True)
            print(plan.name, trainer.steps, *(f"{name} {value:.3f}" for name, value in named), flush=True)
        if clock.spent - refreshed > REFRESH_SECONDS:
            trainer.refresh()
            refreshed = clock.spent
        if clock.spent - saved > CHECKPOINT_SECONDS:
            keep(trainer, plan, clock)
            saved = clock.spent
    if trainer.steps > first:
        keep(trainer, plan, clock)


def begin(trainer: Trainer, plan: Plan) -> Clock:
    """Take up the plan's checkpoint, or its weights, and start the clock."""
    checkpoint = plan.out / f"{plan.name}-checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=trainer.device, weights_only=True)
        trainer.load(saved)
        return plan.clock(float(saved["seconds"]), cold=False)
    if plan.init is not None:
        trainer.start_from(load_weights(plan.init))
    return plan.clock(plan.spent * 60, cold=plan.init is not None)


def keep(trainer: Trainer, plan: Plan, clock: Clock) -> None:
    """Write the weights as they stand and, if they are sound, the checkpoint."""
    export(plan.out / f"{plan.name}.pt", trainer.weights())
    save(plan.out / f"{plan.name}-checkpoint.pt", {**trainer.state(), "seconds": clock.spent})


class LossLog:
    """A csv of losses by step and second, appended to across resumes."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = tuple(names)
        if not path.exists():
            self._append(["step", "seconds", *names])

    def write(self, step: int, seconds: float, losses: Tensor) -> list[float]:
        """Append one row; `losses` (one a name) are copied from the device here."""
        values: list[float] = losses.tolist()
        if not all(math.isfinite(value) for value in values):
            named = ", ".join(f"{name} {value:.3g}" for name, value in zip(self.names, values, strict=True))
            raise FloatingPointError(f"the losses of step {step} are not finite ({named}); start again to resume")
        self._append([str(step), f"{seconds:.1f}", *(f"{value:.4f}" for value in values)])
        return values

    def _append(self, row: Sequence[str]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)


def save(path: Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint so that a run cut short leaves the former one whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def export(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights as they ship: half precision, contiguous, on the CPU; names of one tensor share it.

    Raises FloatingPointError, and writes nothing, if they are not finite.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, tensor in state.items():
        half = tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype)
        if not bool(half.isfinite().all()):
            raise FloatingPointError(f"{name} is not finite in half precision; start again to resume")
        made[tensor.data_ptr(), tensor.shape] = half.clone(memory_format=torch.contiguous_format)
    save(path, {name: made[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()})
