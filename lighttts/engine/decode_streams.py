"""What every decode engine does: takes requests and their tokens in, and says what came of a hop.

Pure and synchronous: no sockets, no threads. `feed` only stores tokens; `step` computes. Each request goes through hops
(`lighttts.engine.schedule`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.decode_stream import (
    FRAMES_A_TOKEN,
    NO_AUDIO,
    DecodeStep,
    DecodeStream,
    Floats,
    Tokens,
    VoicePrompt,
    check_tokens,
    check_voice,
)
from lighttts.engine.schedule import Hop, HopSchedule
from lighttts.errors import InternalError, InvalidInput, Overloaded
from lighttts.models.cfm import NOISE_FRAMES
from lighttts.models.flow import Flow
from lighttts.models.hift import Generator

SLOWEST, FASTEST = 0.25, 4.0
"""Limits of `speed`."""


class DecodeStreams(ABC):
    """Up to `max_streams` requests, none of more than `longest` tokens, prompt included."""

    def __init__(
        self,
        flow: Flow,
        hift: Generator,
        max_streams: int,
        longest: int = NOISE_FRAMES // FRAMES_A_TOKEN,
    ) -> None:
        self.flow = flow
        self.hift = hift
        self.max_streams = max_streams
        self._longest = min(longest, NOISE_FRAMES // FRAMES_A_TOKEN)
        self._streams: dict[Hashable, DecodeStream] = {}

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has something to compute or to tell."""

    @abstractmethod
    def step(self) -> list[DecodeStep]:
        """Compute some of what is ready. What it returns may be empty while `busy` stays true."""

    @property
    def streams(self) -> int:
        """Open requests."""
        return len(self._streams)

    def open(
        self,
        key: Hashable,
        voice: VoicePrompt,
        *,
        seed: int | None,
        output: Literal["audio", "mel"] = "audio",
        speed: float = 1.0,
    ) -> None:
        """Start a request. `seed`: 64 bits that name the vocoder's noise; None for `VocoderHop`'s noiseless excitation.

        Raises `Overloaded` if `max_streams` are open, `InvalidInput` for a voice of wrong shapes or a speed outside
        [SLOWEST, FASTEST], `InternalError` if `key` is open.
        """
        if key in self._streams:
            raise InternalError(f"Decode stream {key!r} is already open.")
        if len(self._streams) >= self.max_streams:
            raise Overloaded(f"All {self.max_streams} decode streams are in use; try again later.", retry_after=1.0)
        if not SLOWEST <= speed <= FASTEST:
            raise InvalidInput(f"speed {speed} is not between {SLOWEST} and {FASTEST}.", field="speed")
        sizes = self.flow.config
        check_voice(voice, speaker_size=sizes.speaker_size, bins=self.hift.config.bins, vocabulary=sizes.vocabulary)
        schedule = HopSchedule(len(voice.tokens), sizes.chunk, sizes.look_ahead)
        self._streams[key] = DecodeStream(key, voice, seed, output, speed, schedule, np.zeros(0, np.int32))

    def feed(self, key: Hashable, tokens: Tokens, final: bool) -> None:
        """Append speech tokens (n,), n >= 0; `final` says that none will follow.

        Raises `InvalidInput` if a token is none of the model's or the request grows beyond the longest mel,
        `InternalError` if the request is not open or its last tokens came before. Nothing is appended then.
        """
        stream = self._streams.get(key)
        if stream is None or stream.ended:
            raise InternalError(f"Decode stream {key!r} takes no tokens: it is not open or has had its last.")
        check_tokens(tokens, self.flow.config.vocabulary, "tokens")
        longest = self._longest - len(stream.voice.tokens)
        if len(stream.tokens) + len(tokens) > longest:
            raise InvalidInput(f"The speech is longer than {longest} tokens; split the text.", field="text")
        stream.tokens = np.concatenate([stream.tokens, tokens.astype(np.int32)])
        stream.ended = final

    def close(self, key: Hashable) -> bool:
        """Cancel a request and free its state. False if it is not open: it finished, was closed, or never was."""
        return self._streams.pop(key, None) is not None

    @abstractmethod
    def forget_voice(self, key: str) -> None:
        """Drop what is kept of a voice beyond its requests; none of them is open."""

    def _finish_wordless(self) -> list[DecodeStep]:
        """The only steps of requests that ended without a token."""
        wordless = [stream for stream in self._streams.values() if stream.ended and not len(stream.tokens)]
        mel = np.zeros((0, self.hift.config.bins), np.float32)
        for stream in wordless:
            del self._streams[stream.key]
        return [DecodeStep(stream.key, mel, NO_AUDIO, 0, 0, hop=0, finished=True) for stream in wordless]

    def _deliver(self, stream: DecodeStream, hop: Hop, mel: Floats, audio: Floats) -> DecodeStep:
        """What `stream` gained by `hop`; it is forgotten after its last."""
        step = DecodeStep(
            key=stream.key,
            mel=mel,
            audio=audio,
            first_sample=stream.samples,
            first_frame=stream.frames,
            hop=hop.index,
            finished=hop.final,
        )
        stream.frames += len(mel)
        stream.samples += len(audio)
        if hop.final:
            del self._streams[stream.key]
        return step

    def _spoken(self, stream: DecodeStream, mel: Tensor, first: int) -> Tensor:
        """Those of the frames `mel` from token `first` on that come after the prompt, at the request's speed."""
        mel = mel[max(0, FRAMES_A_TOKEN * (len(stream.voice.tokens) - first)) :]
        if stream.speed == 1.0:
            return mel
        frames = max(1, int(mel.size(0) / stream.speed))
        return F.interpolate(mel.T[None], size=frames, mode="linear")[0].T

    def _tokens(self, stream: DecodeStream, hop: Hop, first: int) -> Tokens:
        """Prompt and speech from token `first` on, as far as `hop` is given them."""
        return np.concatenate([stream.voice.tokens, stream.tokens[: hop.given]])[first:].astype(np.int32)
