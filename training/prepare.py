"""Turn sentences into what the trainers read: `training.corpus.Corpus` and the text tokenizer. Needs no GPU.

    python -m training.prepare --web corpus_web.txt --examples corpus_wordnet.txt --definitions DICT_DIR \\
        --dev dev_sentences.txt --out CORPUS_DIR

writes ``CORPUS_DIR/corpus.npz``, ``CORPUS_DIR/sentences.txt`` (one a line, same order) and the tokenizer's files in
``CORPUS_DIR/CosyVoice-BlankEN/``. The first sentences are the ones to measure on, then a held-out set, then the rest
shuffled.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from training.bpe import Encoder, train_bpe
from training.corpus import Corpus
from training.text import normalise, read_lines, wordnet_definitions

HELD_OUT = 400
MAX_PHONEMES = 420
SEED = 1


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
    encoders = (Encoder(folder), Encoder(folder, spaced=True, dropout=0.06))
    kinds = [encoder.encode(texts, places) for encoder in encoders]
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
