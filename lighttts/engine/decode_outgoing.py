"""Results on their way from the device to the host, which does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lighttts.engine.decode_stream import Floats
from lighttts.engine.decode_track import Track
from lighttts.engine.schedule import Hop


class Moment:
    """A point in the current CUDA stream's work; on a CPU it has always passed."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def passed(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


@dataclass(frozen=True)
class Made:
    """A hop that is computed. `numbers`: float32, its mel (frames, bins) flat, then its audio; there once `arrived`."""

    track: Track
    hop: Hop
    numbers: Tensor
    frames: int
    arrived: Moment

    def results(self, bins: int) -> tuple[Floats, Floats]:
        """Mel (frames, bins) and audio (samples,)."""
        mel, audio = np.split(self.numbers.numpy().copy(), [self.frames * bins])
        return mel.reshape(-1, bins), audio


class Outgoing:
    """Hops in the order they were computed in."""

    def __init__(self) -> None:
        self._made: deque[Made] = deque()

    def __bool__(self) -> bool:
        return bool(self._made)

    def send(self, track: Track, hop: Hop, mel: Tensor, audio: Tensor | None) -> None:
        """`mel`: (frames, bins), `audio`: (samples,), None if there is to be none; both on the device."""
        numbers = mel.float().flatten() if audio is None else torch.cat([mel.float().flatten(), audio.float()])
        if numbers.device.type == "cuda":
            # Only memory that cannot be paged out is copied to while the host goes on.
            there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            there.copy_(numbers, non_blocking=True)
        else:
            there = numbers
        self._made.append(Made(track, hop, there, len(mel), Moment(numbers.device)))

    def arrivals(self, wait: bool) -> Iterator[Made]:
        """Takes out what is there; with `wait`, at least one if there are any."""
        while self._made:
            arrived = self._made[0].arrived
            if not arrived.passed:
                if not wait:
                    return
                arrived.wait()
            wait = False
            yield self._made.popleft()
