"""Let the teacher speak the corpus into a store, on all CPU cores.

    python -m training.generate --corpus CORPUS_DIR/corpus.npz --out DATA/store --first 520 --processes 16

Each process writes whole parts of 400 sentences, named by their first sentence; finished parts are skipped when run
again.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.corpus import Corpus
from training.store import FRAME, Utterance, part_names, write_part

SENTENCES_A_PART = 400
LEAD, TAIL = 8, 16
"""Frames kept of the silences around an utterance: the teacher's are long, and a listener waits for them."""
SILENT = 1e-3


@dataclass(frozen=True, eq=False)
class Spoken:
    """A chunk of phonemes spoken: audio (samples,); frames of 300 samples each phoneme lasts (n,); pitch a frame."""

    audio: NDArray[np.float32]
    frames: NDArray[np.int64]
    f0: NDArray[np.float32]


class Speaker(Protocol):
    def speak(self, phone: NDArray[np.uint8], rng: np.random.Generator) -> Spoken:
        """Phoneme ids (n,) from silence 0 to silence 0."""


def utterance(speaker: Speaker, sentence: int, phone: NDArray[np.uint8]) -> Utterance:
    """One sentence, its chunks one after the other."""
    rng = np.random.default_rng(sentence)
    chunks = [speaker.speak(chunk, rng) for chunk in split_chunks(phone)]
    audio, frames, f0 = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("audio", "frames", "f0"))
    return trim(sentence, phone, Spoken(audio, frames, f0))


def split_chunks(phone: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut at every pair of silences: [0 a b 0 0 c 0] -> [0 a b 0], [0 c 0]."""
    cuts = np.flatnonzero((phone[:-1] == 0) & (phone[1:] == 0)) + 1
    return np.split(phone, cuts)


def trim(sentence: int, phone: NDArray[np.uint8], spoken: Spoken) -> Utterance:
    """Shorten the silences at both ends, in durations as in audio, and turn audio into int16."""
    loud = np.flatnonzero(np.abs(spoken.audio) > SILENT) // FRAME
    last = int(loud[-1]) if len(loud) else 0
    begin = max(0, int(spoken.frames[0]) - LEAD)
    end = min(int(spoken.frames.sum()), last + 1 + TAIL)
    edges = np.clip(np.concatenate([[0], np.cumsum(spoken.frames)]), begin, end)
    quantised = np.round(np.clip(spoken.audio[begin * FRAME : end * FRAME], -1, 1) * 32767).astype(np.int16)
    f0 = spoken.f0[begin:end].astype(np.float16)
    return Utterance(sentence, quantised, phone, np.diff(edges).astype(np.uint16), f0)


def make_part(corpus: Corpus, speaker: Speaker, span: tuple[int, int], out: Path) -> None:
    """Speak and write the sentences of a span."""
    start = np.concatenate([[0], np.cumsum(corpus.phones)])
    utterances = [utterance(speaker, i, corpus.phone[start[i] : start[i + 1]]) for i in range(*span)]
    write_part(out, f"{span[0]:06d}", utterances)


def todo(out: Path, first: int, last: int) -> list[tuple[int, int]]:
    """Spans of the parts between two sentences that are not in the store."""
    done = set(part_names(out))
    spans = [(i, min(i + SENTENCES_A_PART, last)) for i in range(first, last, SENTENCES_A_PART)]
    return [span for span in spans if f"{span[0]:06d}" not in done]


_process: dict[str, tuple[Corpus, Speaker, Path]] = {}


def _start(corpus: Path, out: Path) -> None:
    """In each process, once."""
    from training.teacher import Voice

    _process["own"] = Corpus.load(corpus), Voice(), out


def _make(span: tuple[int, int]) -> None:
    corpus, speaker, out = _process["own"]
    make_part(corpus, speaker, span, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, help="sentence to stop before")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sentences = len(Corpus.load(options.corpus))
    spans = todo(options.out, options.first, min(options.last or sentences, sentences))
    pool = multiprocessing.get_context("spawn").Pool(options.processes, _start, (options.corpus, options.out))
    with pool:
        pool.map(_make, spans, chunksize=1)


if __name__ == "__main__":
    main()
