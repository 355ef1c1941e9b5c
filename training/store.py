"""The teacher's speech on disk: audio, phonemes, durations and pitch of many utterances.

A store is a folder of parts. Each part is written once, by one process, as two files:

``part-NAME.pcm``
    the utterances' audio one after the other, raw little-endian int16, 24 kHz mono.
``part-NAME.npz``
    ``sentence`` (n,) int32, the sentence's number in the corpus; ``samples`` (n,) int64, audio lengths; ``phones``
    (n,) int64, phoneme counts; ``phone`` (sum phones,) uint8, phoneme ids; ``frames`` (sum phones,) uint16, each
    phoneme's duration in frames of 300 samples (12.5 ms); ``f0`` (sum frames,) float16, Hz a frame (below 40:
    unvoiced).

The npz file appears last and by renaming, so a part that can be seen is whole: readers may open a store while
generators still add to it. Every utterance has exactly 300 samples a frame.

Example, a store of one synthetic utterance (0.5 s of a 200 Hz tone, two phonemes)::

    pcm = (8000 * np.sin(2 * np.pi * 200 * np.arange(12000) / 24000)).astype(np.int16)
    u = Utterance(sentence=0, pcm=pcm, phone=np.array([43, 44], np.uint8), frames=np.array([10, 30], np.uint16),
                  f0=np.full(40, 200, np.float16))
    write_part(folder, "000", [u])
    store = Store.open(folder)
    pcm, start = store.pcm(), store.start  # int16 (total,), int64 (n + 1,): utterance i is pcm[start[i] : start[i + 1]]
    flat = torch.from_numpy(pcm).cuda()  # 2 bytes a sample: 90 hours are 15.5 GB
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24000
FRAME = 300


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence; field meanings and dtypes as in the part files."""

    sentence: int
    pcm: NDArray[np.int16]
    phone: NDArray[np.uint8]
    frames: NDArray[np.uint16]
    f0: NDArray[np.float16]


def write_part(folder: str | Path, name: str, utterances: Sequence[Utterance]) -> None:
    """Write one part. Raises ValueError if an utterance's audio, durations and pitch disagree in length."""
    folder = Path(folder)
    for u in utterances:
        total = int(u.frames.sum(dtype=np.int64))
        if len(u.pcm) != total * FRAME or len(u.f0) != total or len(u.phone) != len(u.frames):
            raise ValueError(f"utterance of sentence {u.sentence}: audio, durations and pitch disagree in length")
    with open(folder / f"part-{name}.pcm", "wb") as file:
        for u in utterances:
            file.write(np.ascontiguousarray(u.pcm, "<i2").data)
    partial = folder / f"part-{name}.partial"
    with open(partial, "wb") as file:
        np.savez(
            file,
            sentence=np.array([u.sentence for u in utterances], np.int32),
            samples=np.array([len(u.pcm) for u in utterances], np.int64),
            phones=np.array([len(u.phone) for u in utterances], np.int64),
            phone=np.concatenate([u.phone for u in utterances]).astype(np.uint8),
            frames=np.concatenate([u.frames for u in utterances]).astype(np.uint16),
            f0=np.concatenate([u.f0 for u in utterances]).astype(np.float16),
        )
    os.replace(partial, folder / f"part-{name}.npz")


def part_names(folder: str | Path) -> list[str]:
    """Names of the finished parts, sorted."""
    return sorted(path.stem.removeprefix("part-") for path in Path(folder).glob("part-*.npz"))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Store:
    """Some parts of a store, read as one list of ``n`` utterances.

    sentence (n,); start (n + 1,) sample offsets; phone_start (n + 1,) offsets into ``phone`` and ``frames``;
    f0_start (n + 1,) offsets into ``f0``.
    """

    folder: Path
    names: tuple[str, ...]
    sentence: NDArray[np.int32]
    start: NDArray[np.int64]
    phone_start: NDArray[np.int64]
    f0_start: NDArray[np.int64]
    phone: NDArray[np.uint8]
    frames: NDArray[np.uint16]
    f0: NDArray[np.float16]

    @classmethod
    def open(cls, folder: str | Path, names: Iterable[str] | None = None) -> Store:
        """Open the named parts (default: all that are finished). Raises FileNotFoundError if there are none."""
        folder = Path(folder)
        chosen = tuple(part_names(folder) if names is None else names)
        if not chosen:
            raise FileNotFoundError(f"{folder} holds no finished part; run training.generate first")
        columns: dict[str, list[NDArray[np.generic]]] = {}
        for name in chosen:
            with np.load(folder / f"part-{name}.npz", allow_pickle=False) as part:
                for key in part.files:
                    columns.setdefault(key, []).append(part[key])
        table = {key: np.concatenate(arrays) for key, arrays in columns.items()}
        samples = table["samples"]
        return cls(
            folder=folder,
            names=chosen,
            sentence=table["sentence"],
            start=_offsets(samples),
            phone_start=_offsets(table["phones"]),
            f0_start=_offsets(samples // FRAME),
            phone=table["phone"],
            frames=table["frames"],
            f0=table["f0"],
        )

    def __len__(self) -> int:
        return len(self.sentence)

    @property
    def hours(self) -> float:
        return float(self.start[-1]) / SAMPLE_RATE / 3600

    def pcm(self) -> NDArray[np.int16]:
        """All audio, int16 (start[-1],), read into memory."""
        audio = np.empty(int(self.start[-1]), np.int16)
        at = 0
        for name in self.names:
            piece = np.memmap(self.folder / f"part-{name}.pcm", np.dtype("<i2"), mode="r")
            audio[at : at + len(piece)] = piece
            at += len(piece)
        return audio

    def f0_of(self, i: int) -> NDArray[np.float16]:
        """Pitch of utterance ``i``, (frames,) Hz at 80 frames a second."""
        return self.f0[self.f0_start[i] : self.f0_start[i + 1]]
