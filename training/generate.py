"""Let the teacher speak the corpus into a store, on all CPU cores.

    python -m training.generate --corpus CORPUS_DIR/corpus.npz --out DATA/store --first 520 --processes 16

Each process writes whole parts of 400 sentences, named by their first sentence; finished parts are skipped when run
again. The teacher's ONNX graph also computes each phoneme's duration, in frames of 25 ms: it is read as one more
output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from training.corpus import Corpus
from training.store import FRAME, Utterance, part_names, write_part

SENTENCES_A_PART = 400
DURATIONS = "/Clip_output_0"
FRAMES_A_DURATION = 2  # durations count frames of 600 samples, the spectra come in frames of 300
LEAD, TAIL = 8, 16
"""Frames kept of the silences around an utterance: the teacher's are long, and a listener waits for them."""
SILENT = 1e-3


class Teacher:
    """The teacher's network with its durations and the signal processing that makes audio of its output."""

    def __init__(self, onnx_path: Path) -> None:
        graph = onnx.load(onnx_path)
        graph.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = ["lh", "theta", "ln", "lr", "phi", "f0", DURATIONS]

    def speak(self, sentence: int, phone: NDArray[np.uint8]) -> Utterance:
        """One utterance: chunks (each from silence 0 to silence 0) one after the other."""
        from hibari import dsp

        rng = np.random.default_rng(sentence)
        pcm, frames, f0 = [], [], []
        for chunk in split_chunks(phone):
            feed = {"ids": chunk[None].astype(np.int64), "speed": np.ones(1, np.float32)}
            *spectra, pitch, durations = (
                np.squeeze(o, 0) if o.ndim > 1 else o for o in self._session.run(self._names, feed)
            )
            frames.append(durations.astype(np.int64) * FRAMES_A_DURATION)
            f0.append(pitch)
            pcm.append(dsp.synth(*spectra, pitch, rng))
        return trim(sentence, np.concatenate(pcm), phone, np.concatenate(frames), np.concatenate(f0))


def split_chunks(phone: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut at every pair of silences: [0 a b 0 0 c 0] -> [0 a b 0], [0 c 0]."""
    cuts = np.flatnonzero((phone[:-1] == 0) & (phone[1:] == 0)) + 1
    return np.split(phone, cuts)


def trim(
    sentence: int,
    audio: NDArray[np.float32],
    phone: NDArray[np.uint8],
    frames: NDArray[np.int64],
    f0: NDArray[np.float32],
) -> Utterance:
    """Shorten the silences at both ends, in durations as in audio, and turn audio into int16."""
    loud = np.flatnonzero(np.abs(audio) > SILENT) // FRAME
    last = int(loud[-1]) if len(loud) else 0
    begin = max(0, int(frames[0]) - LEAD)
    end = min(int(frames.sum()), last + 1 + TAIL)
    edges = np.clip(np.concatenate([[0], np.cumsum(frames)]), begin, end)
    quantised = np.round(np.clip(audio[begin * FRAME : end * FRAME], -1, 1) * 32767).astype(np.int16)
    return Utterance(sentence, quantised, phone, np.diff(edges).astype(np.uint16), f0[begin:end].astype(np.float16))


_state: dict[str, object] = {}


def _start(corpus: Path, teacher: Path, out: Path, deadline: float) -> None:
    _state.update(corpus=Corpus.load(corpus), teacher=Teacher(teacher), out=out, deadline=deadline)


def _make_part(first: int, last: int) -> None:
    corpus, teacher, out, deadline = (_state[k] for k in ("corpus", "teacher", "out", "deadline"))
    assert isinstance(corpus, Corpus)
    assert isinstance(teacher, Teacher)
    assert isinstance(out, Path)
    assert isinstance(deadline, float)
    if time.time() > deadline:
        return
    start = np.concatenate([[0], np.cumsum(corpus.phones)])
    utterances = [teacher.speak(i, corpus.phone[start[i] : start[i + 1]]) for i in range(first, last)]
    write_part(out, f"{first:06d}", utterances)


def main() -> None:
    import hibari

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=1 << 30)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no part after this time")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    teacher = Path(hibari.__file__).parent / "assets" / "hibari.onnx"
    last = min(args.last, len(Corpus.load(args.corpus)))
    done = set(part_names(args.out))
    spans = [(i, min(i + SENTENCES_A_PART, last)) for i in range(args.first, last, SENTENCES_A_PART)]
    todo = [span for span in spans if f"{span[0]:06d}" not in done]
    started = (args.corpus, teacher, args.out, time.time() + args.minutes * 60)
    with multiprocessing.get_context("spawn").Pool(args.processes, _start, started) as pool:
        pool.starmap(_make_part, todo, chunksize=1)


if __name__ == "__main__":
    main()
