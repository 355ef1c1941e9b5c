"""Turn a store's audio into speech tokens, part by part, while it still grows.

    python -m training.tokenize_store --encoder RUN/tokenizer.pt --store DATA/store

writes ``tokens-NAME.npz`` beside each part: ``token`` (flat) int16 and ``tokens`` (n,) int64, ``ceil(samples / 960)``
tokens an utterance. With ``--follow`` seconds it waits for further parts and ends when none has come for that long.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.features import SAMPLES_PER_TOKEN, Resample, WhisperMel
from training.store import Store, part_names
from training.tokenizer import FRAMES_A_TOKEN, Encoder, load_encoder

ROWS = 100


class Tokeniser:
    """The encoder with its features, on a device."""

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self.encoder, self.device = encoder.to(device).eval(), device
        self.mel, self.resample = WhisperMel().to(device), Resample(2, 3).to(device)

    @torch.no_grad()
    def __call__(self, audio: list[NDArray[np.int16]]) -> list[NDArray[np.int16]]:
        """Tokens of each utterance of 24 kHz audio."""
        counts = [-(-len(a) // SAMPLES_PER_TOKEN) for a in audio]
        order = np.argsort(counts, kind="stable")
        result: list[NDArray[np.int16]] = [np.zeros(0, np.int16)] * len(audio)
        for at in range(0, len(order), ROWS):
            rows = order[at : at + ROWS]
            tokens = self._rows([audio[i] for i in rows], [counts[i] for i in rows]).to(torch.int16).cpu().numpy()
            for i, row in zip(rows, tokens, strict=True):
                result[i] = row[: counts[i]]
        return result

    def _rows(self, audio: list[NDArray[np.int16]], counts: list[int]) -> Tensor:
        padded = np.zeros((len(audio), max(counts) * SAMPLES_PER_TOKEN), np.int16)
        for row, samples in zip(padded, audio, strict=True):
            row[: len(samples)] = samples
        mel = self.mel(self.resample(torch.from_numpy(padded).to(self.device).float() / 32768.0))
        return self.encoder.tokens(mel, torch.tensor(counts, device=self.device) * FRAMES_A_TOKEN)


def tokenise_part(tokeniser: Tokeniser, folder: Path, name: str) -> None:
    store = Store.open(folder, [name])
    pcm = store.pcm()
    tokens = tokeniser([pcm[a:b] for a, b in zip(store.start[:-1], store.start[1:], strict=True)])
    partial = folder / f"tokens-{name}.partial"
    with open(partial, "wb") as file:
        np.savez(file, token=np.concatenate(tokens), tokens=np.array([len(t) for t in tokens], np.int64))
    os.replace(partial, folder / f"tokens-{name}.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--follow", type=float, default=0.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    tokeniser = Tokeniser(load_encoder(args.encoder), device)
    last = time.monotonic()
    while True:
        todo = [name for name in part_names(args.store) if not (args.store / f"tokens-{name}.npz").exists()]
        for name in todo:
            tokenise_part(tokeniser, args.store, name)
            last = time.monotonic()
        if not todo:
            if time.monotonic() - last >= args.follow:
                return
            time.sleep(0.5)


if __name__ == "__main__":
    main()
