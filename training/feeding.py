"""What the language model is trained on: tokenised sentences of a growing store, packed into batches on the device."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.corpus import Corpus
from training.packing import Layout, Rows, Spoken, align, epoch
from training.store import Store, part_names

SENTENCES_AN_EPOCH = 40_000
COLUMNS = ("ids", "label", "guide", "position", "document")


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

    def __init__(self, library: Library, layout: Layout, recipe: Recipe, device: torch.device) -> None:
        """Begins when the library holds the recipe's ``least`` sentences."""
        self._library, self._layout, self._recipe, self._device = library, layout, recipe, device
        self._rng = np.random.default_rng()  # a resumed run is to see other epochs
        self._epochs: queue.Queue[Rows | Exception] = queue.Queue(1)
        self._columns: list[Tensor] = []
        self._at = 0
        threading.Thread(target=self._build, daemon=True).start()

    def _build(self) -> None:
        try:
            while True:
                self._epochs.put(self._epoch())
        except Exception as error:  # for `fill` to raise: nobody looks at this thread
            self._epochs.put(error)

    def _epoch(self) -> Rows:
        recipe = self._recipe
        while (spoken := self._library.refresh(recipe.least)) is None:
            time.sleep(0.5)
        made = epoch(spoken, self._layout, recipe.length, recipe.interleaved, SENTENCES_AN_EPOCH, self._rng)
        if len(made.ids) < recipe.rows:
            raise ValueError(f"{len(spoken)} sentences make {len(made.ids)} rows, not a batch of {recipe.rows}")
        return made

    def fill(self, batch: dict[str, Tensor]) -> None:
        """Copy the next rows into the batch's tensors; waits for the first epoch. Raises what building one raised."""
        rows = self._recipe.rows
        if not self._columns or self._at + rows > len(self._columns[0]):
            made = self._epochs.get()
            if isinstance(made, Exception):
                raise made
            self._columns = [torch.from_numpy(getattr(made, name)).to(self._device) for name in COLUMNS]
            self._at = 0
        for name, column in zip(COLUMNS, self._columns, strict=True):
            batch[name].copy_(column[self._at : self._at + rows])
        self._at += rows


def blank_batch(recipe: Recipe, device: torch.device) -> dict[str, Tensor]:
    """Tensors that batches are copied into, filled with something a step can run on."""
    return {name: torch.zeros(recipe.rows, recipe.length, dtype=torch.int64, device=device) for name in COLUMNS}
