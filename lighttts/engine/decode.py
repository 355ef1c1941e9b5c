"""Decode engine: speech tokens of many requests to mel and audio, hop by hop, in shared batches.

Pure and synchronous: no clock, no sockets, no threads. `feed` only stores tokens; `step` computes. Each request goes
through hops (`lighttts.engine.schedule`); its state is a value kept in its stream, which what a step computes replaces.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.batching import choose
from lighttts.engine.decode_stream import (
    FRAMES_A_TOKEN,
    NO_AUDIO,
    DecodeStep,
    DecodeStream,
    Tokens,
    VoicePrompt,
    Work,
    check_tokens,
    check_voice,
)
from lighttts.engine.schedule import Hop, HopSchedule
from lighttts.engine.voice_cache import VoiceCache
from lighttts.errors import InternalError, InvalidInput, Overloaded
from lighttts.models.cfm import NOISE_FRAMES
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, FlowState
from lighttts.models.hift import HiFTGenerator
from lighttts.models.hift_stream import VocoderHop, VocoderResult, vocode

SLOWEST, FASTEST = 0.25, 4.0
"""Limits of `speed`."""
__all__ = ["DecodeEngine", "DecodeStep", "VoicePrompt"]


class DecodeEngine:
    """Decodes up to `max_streams` requests, at most `max_batch` hops a step.

    What is exact: with `max_batch` 1, a request's results are bitwise the same whatever else is open and whenever its
    tokens arrive. In a larger batch the sums of a row may be taken in another order: mel differs by some 1e-6 from the
    same request alone, and audio by what the vocoder makes of that (its pitch, some 1e-5 Hz off, adds up to a phase).
    Nothing else of the batch around a request has any influence. On a CPU a batch is worth a third of the first hops'
    time, and little later.

    A request at speed 1 streams; its caches hold, in numbers of the model's dtype, for each finished frame, prompt
    included: steps x 2 halves x 2 x attention layers x attention width of the estimator, 2 x up-layers x width and
    layers x width of the encoder. They grow until the request finishes or is closed, and are freed then. A step needs
    one solver step's share of them again for each member of its batch, padded to the longest. `voice_cache` bytes of
    prompt states are kept for voices that nobody waits for; requests of one voice share their prompt's state. A request
    at another speed waits for its last token and is computed in one pass without chunk mask, as upstream does.
    """

    def __init__(
        self,
        flow: CausalMaskedDiffWithXvec,
        hift: HiFTGenerator,
        *,
        max_batch: int,
        max_streams: int,
        voice_cache: int = 256 << 20,
    ) -> None:
        self.flow = flow
        self.hift = hift
        self.max_batch = max_batch
        self.max_streams = max_streams
        self._streams: dict[Hashable, DecodeStream] = {}
        self._voices = VoiceCache(voice_cache)
        self._steps = 0

    @property
    def streams(self) -> int:
        """Open requests."""
        return len(self._streams)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to compute."""
        return any(stream.next_hop() is not None for stream in self._streams.values())

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches; what requests share through their voice is counted for each."""
        flows = sum(stream.flow.bytes for stream in self._streams.values() if stream.flow is not None)
        return flows + self._voices.bytes

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
        config = sizes.encoder
        schedule = HopSchedule(len(voice.tokens), config.chunk, config.look_ahead)
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
        longest = NOISE_FRAMES // FRAMES_A_TOKEN - len(stream.voice.tokens)
        if len(stream.tokens) + len(tokens) > longest:
            raise InvalidInput(f"The speech is longer than {longest} tokens; split the text.", field="text")
        stream.tokens = np.concatenate([stream.tokens, tokens.astype(np.int32)])
        stream.ended = final

    def close(self, key: Hashable) -> bool:
        """Cancel a request and free its state. False if it is not open: it finished, was closed, or never was."""
        return self._streams.pop(key, None) is not None

    @torch.inference_mode()
    def step(self) -> list[DecodeStep]:
        """Compute some ready hops together; the requests served longest ago come first. [] if nothing is ready.

        A step may compute voices' prompts only and return nothing while `busy` stays true. If it raises, no request
        has moved.
        """
        wordless = [stream for stream in self._streams.values() if stream.ended and not len(stream.tokens)]
        if wordless:
            return [self._finish_empty(stream) for stream in wordless]
        works = self._ready()
        group = [works[index] for index in choose([work.size for work in works], self.max_batch)]
        if not group:
            return []
        hops = [self._flow_hop(work) for work in group]
        results = self.flow.advance(hops, chunked=group[0].stream.chunked)
        mels = [self._spoken(work, result.mel) for work, result in zip(group, results, strict=True)]
        audio = self._vocode(group, mels)
        self._steps += 1
        steps = []
        for work, result, mel, vocoded in zip(group, results, mels, audio, strict=True):
            if work.hop is not None:
                steps.append(self._deliver(work.stream, work.hop, result.state, mel, vocoded))
            elif result.state is not None:
                self._voices.put(work.stream.voice.key, result.state)
        self._voices.trim({stream.voice.key for stream in self._streams.values() if stream.flow is None})
        return steps

    def _ready(self) -> list[Work]:
        """What could be computed now, in the order it should be."""
        works, prompts = [], set()
        for stream in sorted(self._streams.values(), key=lambda stream: stream.served):
            hop = stream.next_hop()
            if hop is None:
                continue
            shared = self._shared(stream)
            if shared and self._voices.get(stream.voice.key) is None:
                if stream.voice.key not in prompts:
                    prompts.add(stream.voice.key)
                    works.append(Work(stream, None, 0, shared))
                continue
            past = shared if stream.flow is None else stream.flow.tokens.length
            works.append(Work(stream, hop, past, len(stream.voice.tokens) + hop.end - past))
        return works

    def _shared(self, stream: DecodeStream) -> int:
        """Tokens of the prompt whose state `stream` takes from its voice: whole chunks with their look-ahead."""
        if stream.flow is not None or not stream.chunked:
            return 0
        config = self.flow.config.encoder
        whole = max(0, len(stream.voice.tokens) - config.look_ahead)
        return whole - whole % config.chunk

    def _flow_hop(self, work: Work) -> FlowHop:
        stream, voice = work.stream, work.stream.voice
        state = stream.flow
        if state is None and work.past:
            state = self._voices.get(voice.key)
        if state is None:
            state = self.flow.start(torch.tensor(voice.embedding), torch.tensor(voice.mel))
        if work.hop is None:
            tokens = voice.tokens[: work.new + self.flow.config.encoder.look_ahead]
        else:
            tokens = np.concatenate([voice.tokens, stream.tokens[: work.hop.given]])[work.past :]
        on_device = torch.from_numpy(tokens.astype(np.int64)).to(self.flow.device)
        return FlowHop(state, on_device, final=work.hop is not None and work.hop.final)

    def _spoken(self, work: Work, mel: Tensor) -> Tensor:
        """The frames after the prompt, at the request's speed."""
        stream = work.stream
        mel = mel[max(0, FRAMES_A_TOKEN * (len(stream.voice.tokens) - work.past)) :]
        if stream.speed == 1.0:
            return mel
        frames = max(1, int(mel.size(0) / stream.speed))
        return F.interpolate(mel.T[None], size=frames, mode="linear")[0].T

    def _vocode(self, group: Sequence[Work], mels: Sequence[Tensor]) -> list[VocoderResult | None]:
        """Audio of each hop that is to have some."""
        hops = {
            index: VocoderHop(work.stream.vocoder, mels[index], work.hop.final, work.stream.seed)
            for index, work in enumerate(group)
            if work.hop is not None and work.stream.output == "audio"
        }
        results = dict(zip(hops, vocode(self.hift, list(hops.values())), strict=True))
        return [results.get(index) for index in range(len(group))]

    def _deliver(
        self, stream: DecodeStream, hop: Hop, flow: FlowState | None, mel: Tensor, vocoded: VocoderResult | None
    ) -> DecodeStep:
        """Move `stream` past `hop` and report what it gained."""
        audio = NO_AUDIO if vocoded is None else vocoded.audio.float().cpu().numpy()
        step = DecodeStep(
            key=stream.key,
            mel=mel.cpu().numpy(),
            audio=audio,
            first_sample=stream.samples,
            first_frame=stream.frames,
            hop=hop.index,
            finished=hop.final,
        )
        stream.schedule = stream.schedule.after(hop)
        stream.flow = flow
        stream.vocoder = None if vocoded is None else vocoded.state
        stream.frames += len(step.mel)
        stream.samples += len(audio)
        stream.served = self._steps
        if hop.final:
            del self._streams[stream.key]
        return step

    def _finish_empty(self, stream: DecodeStream) -> DecodeStep:
        """The only step of a request without tokens."""
        del self._streams[stream.key]
        mel = np.zeros((0, self.hift.config.bins), np.float32)
        return DecodeStep(stream.key, mel, NO_AUDIO, first_sample=0, first_frame=0, hop=0, finished=True)
