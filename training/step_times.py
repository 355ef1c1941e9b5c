"""Milliseconds a step of the vocoder's and the flow's training takes on this device, on noise of the real shapes.

    python -m training.step_times --spec training/nano/cosyvoice2.yaml

times each step eagerly and as a CUDA graph: what to choose `--rows` by.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import flow, hift
from training.features import SAMPLES_PER_TOKEN
from training.loop import save
from training.optimise import Replay
from training.speaker_encoder import SpeakerEncoder
from training.store import FRAME, SAMPLE_RATE, Utterance, write_part

TIMED = 20


def noise_store(folder: Path, vocabulary: int, minutes: int = 5) -> None:
    """A tokenised part of utterances of noise, 10 s each."""
    rng = np.random.default_rng(0)
    frames = 10 * SAMPLE_RATE // FRAME
    utterances = [
        Utterance(
            sentence=i,
            pcm=rng.normal(0, 2000, frames * FRAME).astype(np.int16),
            phone=np.zeros(1, np.uint8),
            frames=np.array([frames], np.uint16),
            f0=rng.uniform(0, 250, frames).astype(np.float16),
        )
        for i in range(6 * minutes)
    ]
    write_part(folder, "noise", utterances)
    counts = np.full(len(utterances), frames * FRAME // SAMPLES_PER_TOKEN, np.int64)
    token = rng.integers(0, vocabulary, int(counts.sum())).astype(np.int16)
    np.savez(folder / "tokens-noise.npz", token=token, tokens=counts)


def milliseconds(step: Callable[[], Tensor], device: torch.device, *, eager: bool) -> float:
    """Mean time of a step once it is warm and, unless `eager`, captured."""
    replay = Replay(step, device, eager=eager)
    for _ in range(6):
        last = replay()
    last.sum().item()
    start = time.perf_counter()
    for _ in range(TIMED):
        last = replay()
    last.sum().item()
    return (time.perf_counter() - start) / TIMED * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise_store(folder, flow.read_config(arguments.spec).vocabulary)
        save(folder / "speaker.pt", dict(SpeakerEncoder().state_dict()))
        common = {"spec": arguments.spec, "store": folder}
        vocoder = hift.build(argparse.Namespace(**common, hours=0.1, rows=32, frames=40))
        decoder = flow.build(
            argparse.Namespace(
                **common, warped=None, speaker=folder / "speaker.pt", hours=1.0, rows=32, tokens=flow.Recipe.tokens
            )
        )
    vocoder.schedule(0.5, 1.0)
    decoder.schedule(0.5, 1.0)
    steps = {"hift warm": vocoder.warm_step, "hift adversarial": vocoder.adversarial_step, "flow": decoder.step}
    for label, step in steps.items():
        for eager in (True, False):
            print(
                label,
                "eager" if eager else "graph",
                round(milliseconds(step, vocoder.device, eager=eager), 1),
                flush=True,
            )


if __name__ == "__main__":
    main()
