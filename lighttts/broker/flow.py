"""What has come of a request so far, as its client hears it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Flow:
    """What has come of a request so far: frames towards the client, and the times playback would have had.

    `rows` samples, mel frames or tokens, of which `rows_before` belong to sentences before number `sentence`.
    """

    frames: int = 0
    rows: int = 0
    sentence: int = 0
    rows_before: int = 0
    heard: int | None = 0
    """The sentence of the last frame; None while nobody knows, after a resumption."""
    last_at: float = 0.0
    plays_until: float = 0.0

    def hear(self, sentence: int) -> None:
        """The next frame is of `sentence`."""
        if self.heard is not None and sentence != self.heard:
            self.sentence, self.rows_before = sentence, self.rows
        self.heard = sentence
