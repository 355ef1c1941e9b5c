"""What the decode engine knows of a request: its voice, where it stands, and what a step gives it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lighttts.engine.batching import Size
from lighttts.engine.schedule import Hop, HopSchedule
from lighttts.errors import InvalidInput
from lighttts.models.flow import FlowState
from lighttts.models.hift_stream import State

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

FRAMES_A_TOKEN = 2

NO_AUDIO: Floats = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A voice: `key` names its content (two voices never share one), `embedding` (192,) float32, not normalised.

    `tokens` (n,) int32 and `mel` (2n, 80) float32 of its prompt; empty for a voice that is an embedding only.
    """

    key: str
    embedding: Floats
    tokens: Tokens
    mel: Floats


@dataclass(frozen=True, eq=False)
class DecodeStep:
    """One hop of one request. `first_sample` and `first_frame` count from the start of the request's output.

    `mel`: (frames, 80) float32, the frames of this hop; `audio`: (samples,) float32 at 24 kHz, empty if the output is
    mel. Audio lags behind mel by the frames the vocoder holds back and catches up in the `finished` step, the last.
    """

    key: Hashable
    mel: Floats
    audio: Floats
    first_sample: int
    first_frame: int
    hop: int
    finished: bool


@dataclass(eq=False)
class DecodeStream:
    """An open request. `flow` is None until its first hop; `served` is the number of its last step, 0 before."""

    key: Hashable
    voice: VoicePrompt
    seed: int | None
    output: Literal["audio", "mel"]
    speed: float
    schedule: HopSchedule
    tokens: Tokens
    ended: bool = False
    flow: FlowState | None = None
    vocoder: State | None = None
    frames: int = 0
    samples: int = 0
    served: int = 0

    @property
    def chunked(self) -> bool:
        """Whether it streams, in hops and with the chunk mask."""
        return self.speed == 1.0

    def next_hop(self) -> Hop | None:
        if self.chunked:
            return self.schedule.next(len(self.tokens), self.ended)
        return Hop(0, 0, len(self.tokens), len(self.tokens), final=True) if self.ended else None


@dataclass(frozen=True, eq=False)
class Work:
    """A hop of `stream` that goes on from `past` tokens; with `hop` None, the first chunks of its voice's prompt."""

    stream: DecodeStream
    hop: Hop | None
    past: int
    new: int

    @property
    def size(self) -> Size:
        return Size(FRAMES_A_TOKEN * self.past, FRAMES_A_TOKEN * self.new, self.stream.chunked)


def check_voice(voice: VoicePrompt, *, speaker_size: int, bins: int, vocabulary: int) -> None:
    """Raise `InvalidInput` unless the voice fits a model of these sizes."""
    check_tokens(voice.tokens, vocabulary, "voice")
    wanted = (speaker_size,), (FRAMES_A_TOKEN * len(voice.tokens), bins)
    if (voice.embedding.shape, voice.mel.shape) != wanted:
        raise InvalidInput(
            f"Voice {voice.key!r} has an embedding and a mel of shapes {voice.embedding.shape} and {voice.mel.shape}, "
            f"where the model takes {wanted[0]} and {wanted[1]}; make the voice with this model.",
            field="voice",
        )
    if not (np.isfinite(voice.embedding).all() and np.isfinite(voice.mel).all()):
        raise InvalidInput(f"Voice {voice.key!r} holds numbers that are not finite; make it anew.", field="voice")


def check_tokens(tokens: Tokens, vocabulary: int, field: str) -> None:
    """Raise `InvalidInput` unless `tokens` is a list of a model's speech tokens."""
    if tokens.ndim != 1 or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary):
        raise InvalidInput(f"Speech tokens must be a list of numbers from 0 to {vocabulary - 1}.", field=field)
