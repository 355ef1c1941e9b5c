"""Everything about the text that the trainers need, computed once: phonemes, text tokens, and where each is spoken.

    python -m training.corpus --web corpus_web.txt --examples corpus_wordnet.txt --definitions DICT_DIR \\
        --dev dev_sentences.txt --out CORPUS_DIR

writes ``CORPUS_DIR/corpus.npz``, ``CORPUS_DIR/sentences.txt`` (one a line, same order) and the tokenizer's files in
``CORPUS_DIR/CosyVoice-BlankEN/``. The first sentences are the ones to measure on, then a held-out set, then the rest shuffled.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.bpe import Encoder, train_bpe
from training.text import normalise, read_lines, wordnet_definitions

HELD_OUT = 400
PLACE_UNIT = 64  # places are stored in 64ths of a phoneme
MAX_PHONEMES = 420
SEED = 1


@dataclass(frozen=True)
class Corpus:
    """``n`` sentences as the trainers read them.

    phone, phones: teacher's phoneme ids (flat uint8) and how many a sentence (n,).
    token, place, tokens: for each segmentation of the text, ids (flat uint16), the place among the phonemes at which each
    token begins (flat float32) and how many a sentence (n,). The first segmentation is the tokenizer's own.
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


def _normalise_and_read(lines: list[str]) -> list[tuple[str, bytes, bytes]]:
    """(text, phoneme ids, places of its characters as float32) of each line that the teacher can read."""
    from hibari import Hibari

    from training.align import read, unescape

    teacher = Hibari()
    rows = []
    for line in lines:
        text = normalise(line)
        plain, where = unescape(text)
        reading = read(teacher, plain)
        if reading is not None and len(reading.phone) <= MAX_PHONEMES:
            rows.append((text, reading.phone.tobytes(), reading.place[where].tobytes()))
    return rows


def _gather(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    measured = list(read_lines(args.dev))
    seen = {line.casefold() for line in measured}
    rest: list[str] = []
    for source in (read_lines(args.web), read_lines(args.examples), wordnet_definitions(args.definitions)):
        for line in source:
            if line.casefold() not in seen:
                seen.add(line.casefold())
                rest.append(line)
    order = np.random.default_rng(SEED).permutation(len(rest))
    return measured, [rest[i] for i in order]


def build(args: argparse.Namespace) -> None:
    measured, rest = _gather(args)
    lines = measured + rest
    blocks = [lines[i : i + 2000] for i in range(0, len(lines), 2000)]
    with ProcessPoolExecutor(args.processes) as pool:
        rows = [row for block in pool.map(_normalise_and_read, blocks) for row in block]
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _, _ in rows]
    (args.out / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    folder = args.out / "CosyVoice-BlankEN"
    train_bpe(texts[len(measured) :], folder, args.vocabulary)
    phones = [np.frombuffer(phone, np.uint8) for _, phone, _ in rows]
    places = [np.frombuffer(place, np.float32) for _, _, place in rows]
    kinds = [Encoder(folder).encode(texts, places), Encoder(folder, dropout=0.1, seed=SEED).encode(texts, places)]
    corpus = Corpus(
        phone=np.concatenate(phones),
        phones=np.array([len(p) for p in phones], np.int64),
        token=tuple(kind.token for kind in kinds),
        place=tuple(kind.place for kind in kinds),
        tokens=tuple(kind.tokens for kind in kinds),
        measured=len(measured),
        held_out=HELD_OUT,
    )
    corpus.save(args.out / "corpus.npz")
    letters = sum(len(text) for text in texts) / len(kinds[0].token)
    print(json.dumps({"sentences": len(rows), "letters_a_token": round(letters, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("web", "examples", "definitions", "dev", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=800)
    parser.add_argument("--processes", type=int, default=2)
    build(parser.parse_args())


if __name__ == "__main__":
    main()
