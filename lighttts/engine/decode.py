"""Decode engine: speech tokens of many requests to mel and audio, hop by hop, in shared batches.

No clock: the requests served longest ago come first. A request's state is a value kept in its stream, which what a step
computes replaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lighttts.engine.batching import choose
from lighttts.engine.decode_stream import (
    NO_AUDIO,
    DecodeStep,
    DecodeStream,
    VoicePrompt,
    Work,
)
from lighttts.engine.decode_streams import DecodeStreams
from lighttts.engine.schedule import Hop
from lighttts.engine.voice_cache import VoiceCache
from lighttts.models.flow import Flow, FlowHop, FlowState
from lighttts.models.hift import Generator
from lighttts.models.hift_stream import VocoderHop, VocoderResult, vocode

__all__ = ["DecodeEngine", "DecodeStep", "VoicePrompt"]


class DecodeEngine(DecodeStreams):
    """Decodes up to `max_streams` requests, at most `max_batch` hops a step.

    What is exact: with `max_batch` 1, a request's results are bitwise the same whatever else is open and whenever its
    tokens arrive. In a larger batch the sums of a row may be taken in another order: mel differs by some 1e-6 from the
    same request alone, and audio by what the vocoder makes of that (its pitch, some 1e-5 Hz off, adds up to a phase).
    Nothing else of the batch around a request has any influence. On a CPU a batch is worth a third of the first hops'
    time, and little later.

    A request at speed 1 streams; its caches hold, in numbers of the model's dtype, for each finished frame, prompt
    included: steps x 2 halves x 2 x attention layers x attention width of the estimator, and 2 x up-layers x width and
    layers x width of CosyVoice2's encoder. They grow until the request finishes or is closed, and are freed then. A
    step needs one solver step's share of them again for each member of its batch, padded to the longest. `voice_cache`
    bytes of prompt states are kept for voices that nobody waits for; requests of one voice share their prompt's state.
    A request at another speed waits for its last token and is computed in one pass without chunk mask, as upstream
    does.
    """

    def __init__(
        self,
        flow: Flow,
        hift: Generator,
        *,
        max_batch: int,
        max_streams: int,
        voice_cache: int = 256 << 20,
    ) -> None:
        super().__init__(flow, hift, max_streams)
        self.max_batch = max_batch
        self._voices = VoiceCache(voice_cache)
        self._steps = 0

    @property
    def busy(self) -> bool:
        return any(stream.next_hop() is not None for stream in self._streams.values())

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches; what requests share through their voice is counted for each."""
        flows = sum(stream.flow.bytes for stream in self._streams.values() if stream.flow is not None)
        return flows + self._voices.bytes

    @torch.inference_mode()
    def step(self) -> list[DecodeStep]:
        """Compute some ready hops together; the requests served longest ago come first. [] if nothing is ready.

        A step may compute voices' prompts only and return nothing while `busy` stays true. If it raises, no request
        has moved.
        """
        wordless = self._finish_wordless()
        if wordless:
            return wordless
        works = self._ready()
        group = [works[index] for index in choose([work.size for work in works], self.max_batch)]
        if not group:
            return []
        hops = [self._flow_hop(work) for work in group]
        results = self.flow.advance(hops, chunked=group[0].stream.chunked)
        mels = [self._spoken(work.stream, result.mel, work.past) for work, result in zip(group, results, strict=True)]
        audio = self._vocode(group, mels)
        self._steps += 1
        steps = []
        for work, result, mel, vocoded in zip(group, results, mels, audio, strict=True):
            if work.hop is not None:
                steps.append(self._move(work.stream, work.hop, result.state, mel, vocoded))
            elif result.state is not None:
                self._voices.put(work.stream.voice.key, result.state)
        self._voices.trim({stream.voice.key for stream in self._streams.values() if stream.flow is None})
        return steps

    def forget_voice(self, key: str) -> None:
        self._voices.forget(key)

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
            past = shared if stream.flow is None else stream.flow.tokens
            works.append(Work(stream, hop, past, len(stream.voice.tokens) + hop.end - past))
        return works

    def _shared(self, stream: DecodeStream) -> int:
        """Tokens of the prompt whose state `stream` takes from its voice: whole chunks with their look-ahead."""
        if stream.flow is not None or not stream.chunked:
            return 0
        config = self.flow.config
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
            tokens = voice.tokens[: work.new + self.flow.config.look_ahead]
        else:
            tokens = self._tokens(stream, work.hop, work.past)
        on_device = torch.from_numpy(tokens.astype(np.int64)).to(self.flow.device)
        return FlowHop(state, on_device, final=work.hop is not None and work.hop.final)

    def _vocode(self, group: Sequence[Work], mels: Sequence[Tensor]) -> list[VocoderResult | None]:
        """Audio of each hop that is to have some."""
        hops = {
            index: VocoderHop(work.stream.vocoder, mels[index], work.hop.final, work.stream.seed)
            for index, work in enumerate(group)
            if work.hop is not None and work.stream.output == "audio"
        }
        results = dict(zip(hops, vocode(self.hift, list(hops.values())), strict=True))
        return [results.get(index) for index in range(len(group))]

    def _move(
        self, stream: DecodeStream, hop: Hop, flow: FlowState | None, mel: Tensor, vocoded: VocoderResult | None
    ) -> DecodeStep:
        """Move `stream` past `hop`."""
        stream.schedule = stream.schedule.after(hop)
        stream.flow = flow
        stream.vocoder = None if vocoded is None else vocoded.state
        stream.served = self._steps
        audio = NO_AUDIO if vocoded is None else vocoded.audio.float().cpu().numpy()
        return self._deliver(stream, hop, mel.cpu().numpy(), audio)
