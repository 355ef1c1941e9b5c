"""Progress of a synthesis on a terminal: one line that is rewritten, silent anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

_INTERVAL = 0.1


@dataclass
class Progress:
    """What has come so far. `began`: when the command started; `asked`: when the text was sent (monotonic seconds)."""

    began: float
    quiet: bool = False
    stream: TextIO = sys.stderr
    clock: Callable[[], float] = time.monotonic
    asked: float = 0.0
    first: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    _drawn: float = 0.0

    def __post_init__(self) -> None:
        self._shown = not self.quiet and self.stream.isatty()

    def say(self, text: str) -> None:
        """Shows what is being waited for."""
        self._draw(text)

    def arrived(self, seconds: float, tokens: int) -> None:
        """A chunk of `seconds`, none perhaps, has come, `tokens` speech tokens are behind all so far."""
        now = self.clock()
        if self.first is None and seconds:
            self.first = now
        self.seconds += seconds
        self.tokens = tokens
        if now - self._drawn >= _INTERVAL:
            self._drawn = now
            self._draw(self.line())

    def line(self) -> str:
        """Tokens, seconds of audio, real-time factor and the time to the first audio."""
        if self.first is None:
            return "no audio"
        factor = f", real-time factor {(self.clock() - self.asked) / self.seconds:.2f}"
        first = f"first after {self.first - self.began:.2f} s"
        return f"{self.tokens} tokens, {self.seconds:.1f} s of audio{factor}, {first}"

    def finish(self, text: str) -> None:
        """Leaves a last line."""
        self._draw(text, end="\n")

    def clear(self) -> None:
        """Takes the line away, so that an error stands alone."""
        self._draw("")

    def _draw(self, text: str, end: str = "") -> None:
        if self._shown:
            self.stream.write(f"\r\x1b[K{text}{end}")
            self.stream.flush()
