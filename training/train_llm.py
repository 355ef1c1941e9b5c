"""Train the language model on a tokenised store, while the store still grows.

    python -m training.train_llm --corpus CORPUS_DIR --store DATA/store --measured DATA/measured --out RUN --minutes 15

Cross-entropy of the next speech token, plus a guide: one attention head in two layers must look at the text token
being spoken, as the teacher's durations tell. Without it a small model learns no alignment within an hour; with it,
within minutes. Speech inputs are corrupted at random, so that a wrong token drawn at run time does not derail what
follows. A run cut short resumes from ``llm-checkpoint.pt``; ``llm.pt`` holds the averaged weights as they ship.
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.corpus import Corpus
from training.llm import Shape, SpeechLM, guide_loss
from training.loop import Average, Clock, LossLog, Replay, adamw, autocast, export, rate_factor, save, set_rates
from training.packing import Layout, Rows, Spoken, align, epoch
from training.store import Store, part_names
from training.tokenizer import codes

TEXT_IDS = 832  # the tokenizer's entries and room for the front end's marks
PEAK_RATE = 1.5e-3
GUIDE_WEIGHT = 0.3
CORRUPTED = 0.06
SENTENCES_AN_EPOCH = 40_000
COLUMNS = ("ids", "label", "guide", "position", "document")
LOSSES = ("speech", "guide", "guided", "accuracy", "held_out", "held_out_guided")
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """What a step holds, the share of sentences in the streaming form, and how many sentences to wait for."""

    rows: int = 21
    length: int = 768
    interleaved: float = 0.08
    least: int = 1


class Library:
    """All tokenised sentences of a store, taken in part by part."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self._corpus, self._folder = corpus, folder
        self._names: list[str] = []
        self._parts: list[Spoken] = []

    def refresh(self, least: int = 1) -> Spoken | None:
        """The sentences of all tokenised parts so far, or None if there are fewer than ``least``."""
        for name in part_names(self._folder):
            path = self._folder / f"tokens-{name}.npz"
            if name not in self._names and path.exists():
                with np.load(path, allow_pickle=False) as file:
                    part = align(self._corpus, Store.open(self._folder, [name]), file["token"], file["tokens"])
                self._parts.append(part)
                self._names.append(name)
        if len(self._parts) > 1:
            self._parts = [Spoken.join(self._parts)]
        return self._parts[0] if self._parts and len(self._parts[0]) >= least else None


class Feeder:
    """Builds epochs in a thread and hands out batches as tensors on the device."""

    def __init__(self, library: Library, layout: Layout, recipe: Recipe, device: torch.device, seed: int) -> None:
        """Begins when the library holds the recipe's ``least`` sentences."""
        self._library, self._layout, self._recipe, self._device = library, layout, recipe, device
        self._rng = np.random.default_rng(seed)
        self._epochs: queue.Queue[Rows] = queue.Queue(1)
        self._columns: list[Tensor] = []
        self._at = 0
        threading.Thread(target=self._build, daemon=True).start()

    def _build(self) -> None:
        while True:
            recipe = self._recipe
            spoken = self._library.refresh(recipe.least)
            if spoken is None:
                time.sleep(0.5)
                continue
            self._epochs.put(
                epoch(spoken, self._layout, recipe.length, recipe.interleaved, SENTENCES_AN_EPOCH, self._rng)
            )

    def fill(self, batch: dict[str, Tensor]) -> None:
        """Copy the next rows into the batch's tensors."""
        rows = self._recipe.rows
        while not self._columns or self._at + rows > len(self._columns[0]):
            made = self._epochs.get()
            self._columns = [torch.from_numpy(getattr(made, name)).to(self._device) for name in COLUMNS]
            self._at = 0
        for name, column in zip(COLUMNS, self._columns, strict=True):
            batch[name].copy_(column[self._at : self._at + rows])
        self._at += rows


def blank_batch(recipe: Recipe, device: torch.device) -> dict[str, Tensor]:
    """Tensors that batches are copied into, filled with something a step can run on."""
    return {name: torch.zeros(recipe.rows, recipe.length, dtype=torch.int64, device=device) for name in COLUMNS}


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

    def __init__(self, layout: Layout, shape: Shape, recipe: Recipe, device: torch.device, *, compiled: bool) -> None:
        self.layout, self.device = layout, device
        self.model = SpeechLM(layout, shape).to(device)
        self.objective = Objective(self.model)
        self._run = torch.compile(self.objective) if compiled else self.objective
        self.optimizer = adamw([(self.model.parameters(), PEAK_RATE)], (0.9, 0.95))
        self.average = Average(self.model, 0.996)
        self.batch = blank_batch(recipe, device)
        self.step = Replay(self._step, device)

    def _step(self) -> Tensor:
        ids = corrupt(self.batch["ids"], self.layout, CORRUPTED)
        with autocast(self.device):
            total, parts = self._run(ids, *(self.batch[name] for name in COLUMNS[1:]))
        self.optimizer.zero_grad(set_to_none=False)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        result: Tensor = parts
        return result

    def warm_up(self) -> None:
        """Compile and capture before there is data: some steps at rate 0, whose traces are wiped."""
        set_rates(self.optimizer, 0.0)
        for _ in range(5):
            self.step()
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    @torch.no_grad()
    def held_out(self, rows: Rows, size: int) -> Tensor:
        """Loss and guided share of rows that are not trained on."""
        self.model.eval()
        results = []
        for at in range(0, len(rows.ids), size):
            columns = [torch.from_numpy(getattr(rows, n)[at : at + size]).to(self.device).long() for n in COLUMNS]
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
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, path: Path) -> None:
        """The averaged weights under upstream's names, in half precision."""
        averaged = SpeechLM(self.layout, self.model.shape)
        averaged.load_state_dict({name: mean.cpu() for name, mean in self.average.state().items()})
        export(path, averaged.published())


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    layout, recipe = Layout(TEXT_IDS, codes()), Recipe(rows=args.rows, least=args.least)
    trainer = Trainer(layout, Shape(layers=args.layers), recipe, device, compiled=not args.eager)
    checkpoint, step, spent = args.out / "llm-checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        trainer.load(saved["trainer"])
        step, spent = saved["step"], saved["spent"]
    else:
        trainer.warm_up()
    corpus = Corpus.load(args.corpus / "corpus.npz")
    feeder = Feeder(Library(corpus, args.store), layout, recipe, device, seed=step)
    feeder.fill(trainer.batch)
    measured = Library(corpus, args.measured).refresh()
    rows = None if measured is None else epoch(measured, layout, recipe.length, 0.0, 1 << 30, np.random.default_rng(0))
    clock, log = Clock(args.minutes, spent), LossLog(args.out / "llm-loss.csv", LOSSES)
    beyond, saved_at = torch.zeros(2, device=device), clock.spent
    while clock.progress < 1.0 and step < args.steps:
        feeder.fill(trainer.batch)
        set_rates(trainer.optimizer, rate_factor(clock.progress))
        result = trainer.step()
        step += 1
        if step % 4 == 0:
            trainer.average.update(restart=step < 1000)
        if rows is not None and step % (10 * args.log_every) == 0:
            beyond = trainer.held_out(rows, recipe.rows)
        if step % args.log_every == 0:
            print("llm", step, log.write(step, clock.spent, torch.cat([result, beyond])), flush=True)
        if clock.spent - saved_at > CHECKPOINT_SECONDS:
            save(checkpoint, {"trainer": trainer.state(), "step": step, "spent": clock.spent})
            trainer.export(args.out / "llm.pt")
            saved_at = clock.spent
    save(checkpoint, {"trainer": trainer.state(), "step": step, "spent": clock.spent})
    trainer.export(args.out / "llm.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "store", "measured", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--steps", type=int, default=1 << 30)
    parser.add_argument("--rows", type=int, default=21)
    parser.add_argument("--least", type=int, default=1, help="sentences to wait for before training begins")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
