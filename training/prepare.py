"""Turn sentences into what the trainers read: `training.corpus.Corpus` and the text tokenizer. Needs no GPU.

    python -m training.prepare --text SENTENCES.txt ... --wordnet DICT_DIR --dev benchmarks/dev_sentences.txt \\
        --out CORPUS_DIR

writes ``CORPUS_DIR/corpus.npz``, ``CORPUS_DIR/sentences.txt`` (one a line, same order) and the tokenizer's files in
``CORPUS_DIR/CosyVoice-BlankEN/``. The first sentences are the ones to measure on, then a held-out set, then the rest
shuffled.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from training.align import read, unescape
from training.bpe import Encoder, train_bpe
from training.corpus import Corpus
from training.text import normalise, read_lines, wordnet_sentences

HELD_OUT = 400
MAX_PHONEMES = 420
SEED = 1


Row = tuple[str, bytes, bytes]
"""A sentence's text, phoneme ids (uint8) and places of its characters (float32)."""


def _normalise_and_read(lines: list[str]) -> list[Row | None]:
    """The row of each line, None for what the teacher cannot read."""
    from training.teacher import Reader

    reader = Reader()
    rows: list[Row | None] = []
    for line in lines:
        text = normalise(line)
        plain, where = unescape(text)
        reading = read(reader, plain)
        known = reading is not None and len(reading.phone) <= MAX_PHONEMES
        rows.append((text, reading.phone.tobytes(), reading.place[where].tobytes()) if reading and known else None)
    return rows


def _gather(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The lines to measure on, and all others once each, shuffled."""
    measured = list(read_lines(args.dev))
    seen = {line.casefold() for line in measured}
    rest: list[str] = []
    for line in chain(*map(read_lines, args.text), wordnet_sentences(args.wordnet)):
        if line.casefold() not in seen:
            seen.add(line.casefold())
            rest.append(line)
    order = np.random.default_rng(SEED).permutation(len(rest))
    return measured, [rest[i] for i in order]


def build(args: argparse.Namespace) -> None:
    first, rest = _gather(args)
    lines = first + rest
    blocks = [lines[i : i + 2000] for i in range(0, len(lines), 2000)]
    with ProcessPoolExecutor(args.processes) as pool:
        read_rows = [row for block in pool.map(_normalise_and_read, blocks) for row in block]
    rows = [row for row in read_rows if row is not None]
    measured = sum(row is not None for row in read_rows[: len(first)])
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _, _ in rows]
    (args.out / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    folder = args.out / "CosyVoice-BlankEN"
    train_bpe(texts[measured:], folder, args.vocabulary)
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
        measured=measured,
        held_out=HELD_OUT,
    )
    corpus.save(args.out / "corpus.npz")
    letters = sum(len(text) for text in texts) / len(kinds[0].token)
    print(json.dumps({"sentences": len(rows), "letters_a_token": round(letters, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of one sentence a line")
    parser.add_argument("--wordnet", type=Path, required=True, help="WordNet's data.noun, data.verb, ...")
    parser.add_argument("--dev", type=Path, required=True, help="sentences to measure on, one a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=800)
    parser.add_argument("--processes", type=int, default=2)
    build(parser.parse_args())


if __name__ == "__main__":
    main()
