"""What one request of a benchmark was like to its listener. Pure. Times are seconds of a monotonic clock."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One request. `due`: when it was to be sent, which counts also if the load could not be kept up.

    `arrivals`: when each chunk came; `lengths`: seconds of audio in each. `error`: its code, empty if all went well.
    """

    due: float
    arrivals: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    end: float = 0.0
    error: str = ""

    def hear(self, arrival: float, seconds: float) -> None:
        """Notes a chunk. One without audio, as may end a stream, is nothing that a listener waits for."""
        if seconds:
            self.arrivals.append(arrival)
            self.lengths.append(seconds)

    @property
    def first_audio(self) -> float:
        """Seconds until the first chunk."""
        return self.arrivals[0] - self.due

    @property
    def intervals(self) -> list[float]:
        """Seconds between chunks."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]

    @property
    def audio(self) -> float:
        """Seconds of audio."""
        return sum(self.lengths)

    @property
    def real_time_factor(self) -> float:
        """Seconds it took for each of audio."""
        return (self.end - self.due) / self.audio

    def gaps(self) -> list[float]:
        """The silences, in seconds, that a listener hears who plays from the first chunk on: the underruns."""
        silences = []
        plays_until = self.arrivals[0] if self.arrivals else 0.0
        for arrival, length in zip(self.arrivals, self.lengths, strict=True):
            if arrival > plays_until:
                silences.append(arrival - plays_until)
                plays_until = arrival
            plays_until += length
        return silences
