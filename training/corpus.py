"""Everything about the text that the trainers need: phonemes, text tokens, and where each is spoken.

`training.prepare` computes it once, without a GPU.

    python -m training.corpus --corpus CORPUS_DIR/corpus.npz --first 90000 --out SHORT/corpus.npz

keeps the first sentences, where all would be too large to send: ten minutes of 16 cores speak some 90,000.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PLACE_UNIT = 64  # places are stored in 64ths of a phoneme


@dataclass(frozen=True)
class Corpus:
    """``n`` sentences as the trainers read them.

    phone, phones: teacher's phoneme ids (flat uint8) and how many a sentence (n,).
    token, place, tokens: for each segmentation of the text, ids (flat uint16), the place among the phonemes at which
    each token begins (flat float32) and how many a sentence (n,). The first segmentation is the tokenizer's own; the
    second begins with a space and varies.
    measured, held_out: the first sentences are for measuring, the next for validation; neither is trained on.
    """

    phone: NDArray[np.uint8]
    phones: NDArray[np.int64]
    token: tuple[NDArray[np.uint16], ...]
    place: tuple[NDArray[np.float32], ...]
    tokens: tuple[NDArray[np.int64], ...]
    measured: int
    held_out: int

    def __len__(self) -> int:
        return len(self.phones)

    def save(self, path: Path) -> None:
        columns: dict[str, NDArray[np.generic]] = {
            "phone": self.phone,
            "phones": self.phones.astype(np.uint16),
            "split": np.array([self.measured, self.held_out], np.int64),
        }
        for k in range(len(self.token)):
            columns[f"token{k}"] = self.token[k]
            columns[f"tokens{k}"] = self.tokens[k].astype(np.uint16)
            columns[f"place{k}"] = np.round(self.place[k] * PLACE_UNIT).astype(np.uint16)
        np.savez_compressed(path, **columns)  # type: ignore[arg-type]

    def first(self, sentences: int) -> Corpus:
        """The first `sentences` of these; the ones to measure on are among them."""
        kinds = range(len(self.token))
        ends = [int(self.tokens[k][:sentences].sum()) for k in kinds]
        return Corpus(
            phone=self.phone[: int(self.phones[:sentences].sum())],
            phones=self.phones[:sentences],
            token=tuple(self.token[k][: ends[k]] for k in kinds),
            place=tuple(self.place[k][: ends[k]] for k in kinds),
            tokens=tuple(self.tokens[k][:sentences] for k in kinds),
            measured=self.measured,
            held_out=self.held_out,
        )

    @classmethod
    def load(cls, path: Path) -> Corpus:
        with np.load(path, allow_pickle=False) as file:
            kinds = range(sum(key.startswith("tokens") for key in file.files))
            return cls(
                phone=file["phone"],
                phones=file["phones"].astype(np.int64),
                token=tuple(file[f"token{k}"] for k in kinds),
                place=tuple(file[f"place{k}"].astype(np.float32) / PLACE_UNIT for k in kinds),
                tokens=tuple(file[f"tokens{k}"].astype(np.int64) for k in kinds),
                measured=int(file["split"][0]),
                held_out=int(file["split"][1]),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True, help="sentences to keep")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    Corpus.load(options.corpus).first(options.first).save(options.out)


if __name__ == "__main__":
    main()
