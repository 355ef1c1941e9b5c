"""Eight streams at once, each in a thread of its own, and what each has heard."""

from __future__ import annotations

import threading
import time

import numpy as np
import numpy.typing as npt

from lighttts.client import Client
from lighttts.errors import LightTTSError

STREAMS = 8
TEXT = "The quick brown fox jumps over the lazy dog. " * 6
FloatArray = npt.NDArray[np.float32]


class Take(threading.Thread):
    """One stream as it is heard. `heard`: samples so far; `times`: when each chunk came, monotonic seconds."""

    def __init__(self, client: Client, text: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.heard = 0
        self.times: list[float] = []
        self.ended: float | None = None
        self.error: LightTTSError | None = None
        self._chunks: list[FloatArray] = []
        self._speech = client.synthesize(text, seed=seed)
        self.start()

    def run(self) -> None:
        """Reads the stream to its end."""
        try:
            for chunk in self._speech:
                self._chunks.append(np.asarray(chunk, np.float32))
                self.times.append(time.monotonic())
                self.heard += len(chunk)
        except LightTTSError as error:
            self.error = error
        self.ended = time.monotonic()

    @property
    def audio(self) -> FloatArray:
        """All samples (n,) in the order they came."""
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)

    def waited(self, moment: float) -> float:
        """Seconds from `moment` to the next chunk; 0 if there was none to come."""
        return next((at - moment for at in self.times if at >= moment), 0.0)


class Takes:
    """The same text with seeds 0 to 7, all at once."""

    def __init__(self, client: Client) -> None:
        self.all = [Take(client, TEXT, seed) for seed in range(STREAMS)]

    @property
    def heard(self) -> int:
        """Samples so far, of all."""
        return sum(take.heard for take in self.all)

    @property
    def over(self) -> bool:
        """Whether every stream has ended."""
        return all(take.ended is not None for take in self.all)

    def finish(self, seconds: float) -> bool:
        """Waits for all to end; False if some have not after `seconds`."""
        deadline = time.monotonic() + seconds
        for take in self.all:
            take.join(max(0.0, deadline - time.monotonic()))
        return self.over


def difference(audio: FloatArray, reference: FloatArray) -> str:
    """Empty if both are the same sample by sample, else a sentence about the first difference."""
    shared = min(len(audio), len(reference))
    differing = np.flatnonzero(audio[:shared] != reference[:shared])
    if len(differing):
        first = int(differing[0])
        largest = float(np.abs(audio[:shared] - reference[:shared]).max())
        return f"{len(differing)} samples differ from sample {first} on, by {largest:.2g} at most"
    if len(audio) != len(reference):
        return f"{len(audio)} samples, not {len(reference)}"
    return ""
