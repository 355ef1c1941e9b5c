"""Train the language model on a tokenised store, while the store still grows.

    python -m training.train_llm --corpus CORPUS_DIR --store DATA/store --measured DATA/measured --out RUN --minutes 15

Cross-entropy of the next speech token, plus a guide: one attention head in two layers must look at the text token
being spoken, as the teacher's durations tell. Without it a small model learns no alignment within an hour; with it,
within minutes. Speech inputs are corrupted at random, so that a wrong token drawn at run time does not derail what
follows. Writes what `training.loop` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.corpus import Corpus
from training.feeding import COLUMNS, Feeder, Library, Recipe, blank_batch
from training.llm import Shape, SpeechLM, guide_loss
from training.loop import Plan, add_options, parse, run
from training.optimise import Average, Replay, adamw, autocast, set_rates
from training.packing import Layout, Rows, epoch
from training.tokenizer import codes

TEXT_IDS = 832  # the tokenizer's entries and room for the front end's marks
PEAK_RATE = 1.5e-3
GUIDE_WEIGHT = 0.3
CORRUPTED = 0.06
AVERAGE_DECAY, AVERAGE_EVERY, AVERAGE_FROM = 0.996, 4, 1000
MEASURE_EVERY = 1000


class Objective(nn.Module):
    """The model with its losses: total, and (speech, guide, guided, accuracy) for the log."""

    def __init__(self, model: SpeechLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, label: Tensor, guide: Tensor, position: Tensor, document: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, attention = self.model(ids, position, document)
        known = label >= 0
        speech = F.cross_entropy(logits.flatten(0, 1).float(), label.flatten())
        led, guided = guide_loss(attention, guide)
        right = ((logits.argmax(-1) == label) & known).sum() / known.sum().clamp_min(1)
        return speech + GUIDE_WEIGHT * led, torch.stack([speech, led, guided, right]).detach()


def corrupt(ids: Tensor, layout: Layout, share: float) -> Tensor:
    """Some speech inputs replaced by random speech tokens: in some rows many, in most few."""
    rate = share * 2 * torch.rand(ids.shape[0], 1, device=ids.device)
    wrong = torch.randint(layout.first_speech, layout.first_speech + layout.speech, ids.shape, device=ids.device)
    hit = (torch.rand(ids.shape, device=ids.device) < rate) & (ids >= layout.first_speech)
    return torch.where(hit, wrong, ids)


class Trainer:
    """Model, optimiser, average and one captured step on the batch's tensors."""

    losses = ("speech", "guide", "guided", "accuracy", "held_out", "held_out_guided")

    def __init__(self, layout: Layout, shape: Shape, recipe: Recipe, device: torch.device) -> None:
        """Compiles and captures the step on a GPU; `feed` must be called before `advance`."""
        self.layout, self.recipe, self.device = layout, recipe, device
        self.model = SpeechLM(layout, shape).to(device)
        self.objective = Objective(self.model)
        self._run = torch.compile(self.objective) if device.type == "cuda" else self.objective
        self.optimizer = adamw([(self.model.parameters(), PEAK_RATE)], (0.9, 0.95))
        self.average = Average(self.model, AVERAGE_DECAY)
        self.batch = blank_batch(recipe, device)
        self.replay = Replay(self.step, device)
        self.beyond = torch.zeros(2, device=device)
        self.steps = 0
        self._warm_up()

    def feed(self, feeder: Feeder, measured: Rows | None) -> None:
        """Train on what `feeder` gives, once it has anything; `measured` are rows to measure on, if there are any."""
        self.feeder, self.measured = feeder, measured
        feeder.fill(self.batch)

    def step(self) -> Tensor:
        """One update on the batch as it stands."""
        ids = corrupt(self.batch["ids"], self.layout, CORRUPTED)
        with autocast(self.device):
            total, parts = self._run(ids, *(self.batch[name] for name in COLUMNS[1:]))
        self.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        result: Tensor = parts
        return result

    def _warm_up(self) -> None:
        """Compile and capture before there is data: some steps at rate 0, whose traces are wiped."""
        set_rates(self.optimizer, 0.0)
        for _ in range(5):
            self.replay()
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def advance(self, progress: float, rate: float) -> Tensor:
        self.feeder.fill(self.batch)
        set_rates(self.optimizer, rate)
        result = self.replay()
        self.steps += 1
        if self.steps % AVERAGE_EVERY == 0:
            self.average.update(restart=self.steps < AVERAGE_FROM)
        if self.measured is not None and self.steps % MEASURE_EVERY == 0:
            self.beyond = self.held_out(self.measured)
        return torch.cat([result, self.beyond])

    def refresh(self) -> None:
        """Nothing: the feeder looks for new parts before every epoch."""

    @torch.no_grad()
    def held_out(self, rows: Rows) -> Tensor:
        """Loss and guided share of rows that are not trained on."""
        self.model.eval()
        results = []
        for at in range(0, len(rows.ids), self.recipe.rows):
            taken = slice(at, at + self.recipe.rows)
            columns = [torch.from_numpy(getattr(rows, name)[taken]).to(self.device).long() for name in COLUMNS]
            with autocast(self.device):
                results.append(self.objective(*columns)[1])
        self.model.train()
        mean = torch.stack(results).mean(0)
        return mean[[0, 2]]

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
        # In place, for the captured step has their addresses.
        for live, saved in zip(self.optimizer.state.values(), state["optimizer"]["state"].values(), strict=True):
            for key, tensor in live.items():
                tensor.copy_(saved[key])
        self.steps = state["steps"]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.model.take(weights)
        self.average.update(restart=True)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights under upstream's names."""
        averaged = SpeechLM(self.layout, self.model.shape)
        averaged.load_state_dict(self.average.state())
        return averaged.published()


def build(arguments: argparse.Namespace, layout: Layout, shape: Shape) -> Trainer:
    """The trainer of the command line's arguments; waits for its sentences."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    recipe = Recipe(rows=arguments.rows, length=arguments.length, least=arguments.least)
    trainer = Trainer(layout, shape, recipe, device)
    corpus = Corpus.load(arguments.corpus / "corpus.npz")
    measured = Library(corpus, arguments.measured).refresh()
    rows = None if measured is None else epoch(measured, layout, recipe.length, 0.0, 1 << 30, np.random.default_rng(0))
    trainer.feed(Feeder(Library(corpus, arguments.store), layout, recipe, device), rows)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of training.prepare")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True, help="tokenised store of the held-out sentences")
    add_options(parser)
    parser.add_argument("--rows", type=int, default=Recipe.rows)
    parser.add_argument("--length", type=int, default=Recipe.length, help="of a row, in tokens")
    parser.add_argument("--least", type=int, default=Recipe.least, help="sentences to wait for before training begins")
    arguments = parse(parser)
    run(build(arguments, Layout(TEXT_IDS, codes()), Shape()), Plan.of("llm", arguments))


if __name__ == "__main__":
    main()
