"""The teacher, hibari-tts (Apache-2.0): how it reads a text, and how it speaks phonemes with their durations.

The only module that imports it, for only the `train` extra brings it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import hibari
import numpy as np
import onnx
import onnxruntime
from hibari import Hibari, dsp
from hibari.g2p.normalize import normalize
from numpy.typing import NDArray

from training.align import Word
from training.generate import Spoken

ONNX = Path(hibari.__file__).parent / "assets" / "hibari.onnx"
DURATIONS = "/Clip_output_0"
FRAMES_A_DURATION = 2  # durations count frames of 600 samples, the spectra come in frames of 300


class Reader:
    """How the teacher reads; a `training.align.Reader`."""

    def __init__(self) -> None:
        self._teacher = Hibari()
        self.vocabulary: dict[str, int] = self._teacher.vocab

    def sentences(self, text: str) -> list[str]:
        found: list[str] = self._teacher.split_sentences(text)
        return found

    def spoken(self, sentence: str) -> str:
        text: str = normalize(sentence)
        return text

    def words(self, spoken: str) -> Iterator[Word]:
        g2p = self._teacher.g2p
        for token in g2p.phonemize_tokens(g2p.tokenize(spoken)):
            yield Word(token.text, token.phonemes or "", bool(token.whitespace))


class Voice:
    """The teacher's network with its durations as one more output, and what makes audio of its spectra."""

    def __init__(self) -> None:
        graph = onnx.load(ONNX)
        graph.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = ["lh", "theta", "ln", "lr", "phi", "f0", DURATIONS]

    def speak(self, phone: NDArray[np.uint8], rng: np.random.Generator) -> Spoken:
        """One chunk, from silence to silence."""
        feed = {"ids": phone[None].astype(np.int64), "speed": np.ones(1, np.float32)}
        results = self._session.run(self._names, feed)
        *spectra, pitch, durations = (np.squeeze(o, 0) if o.ndim > 1 else o for o in results)
        audio = dsp.synth(*spectra, pitch, rng)
        return Spoken(audio, durations.astype(np.int64) * FRAMES_A_DURATION, pitch)


@lru_cache(maxsize=1)
def _whole() -> Hibari:
    return Hibari(threads=1)


def speech(text: str) -> NDArray[np.float32]:
    """A text as the teacher's own command line speaks it: audio (n,) at 24 kHz."""
    audio: NDArray[np.float32] = _whole()(text, speed=1.0, seed=0)
    return audio
