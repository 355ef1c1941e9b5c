"""Decode engine for a GPU: hops of many requests advance together by solver steps, by playback deadline.

A request's past lies in pages (`lighttts.engine.flow_pages`). When they run out, those of the requests that have most
audio in hand are given up and computed again, from the same tokens and noise, when their turn comes: slower, not other.
The host stays at most `AHEAD` solver steps in front of the GPU, so that what comes next waits no longer than that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from lighttts.engine.decode_outgoing import Made, Moment, Outgoing
from lighttts.engine.decode_stream import FRAMES_A_TOKEN, DecodeStep, VoicePrompt
from lighttts.engine.decode_streams import DecodeStreams
from lighttts.engine.decode_track import Owner, Track, VoicePasts, give_up
from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_pages import RESERVED, PagePool
from lighttts.engine.schedule import Hop
from lighttts.engine.side_stream import SideStream
from lighttts.errors import ConfigError, InvalidInput
from lighttts.models.flow import Flow, FlowHop
from lighttts.models.hift import Generator
from lighttts.models.hift_stream import VocoderHop, VocoderResult, vocode

AHEAD = 2
"""Solver steps given to the GPU before the host waits for the first of them."""
CROWD, GATHER = 16, 3
"""With so many chunks under way, new ones join at every third step: features of four hops, and later their audio, take
the GPU little longer than those of one."""
WAVE = 8
"""Chunks of a past that are computed again at once."""
LARGEST_HOP = 7
"""Chunks of the largest hop, with the end of a prompt before it and the rest of a chunk behind."""

Vocode = Callable[[Sequence[VocoderHop]], list[VocoderResult]]


class PagedDecodeEngine(DecodeStreams):
    """Decodes up to `max_streams` requests, at most `slots` chunks of them at once, their pasts in `pages` pages.

    `vocode` makes audio of hops, by default the model's own. Which requests share a step changes results by rounding
    only. A request at another speed than 1 is computed in one pass after its last token. Raises `ConfigError` if one
    hop would not fit.
    """

    def __init__(
        self,
        flow: Flow,
        hift: Generator,
        *,
        max_streams: int,
        slots: int,
        pages: int,
        vocode: Vocode | None = None,
        flow_batch: Callable[[Flow, PagePool, int], FlowBatch] = FlowBatch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chunk, self._look_ahead = flow.config.chunk, flow.config.look_ahead
        super().__init__(flow, hift, max_streams, (pages - RESERVED) * self._chunk)
        least = RESERVED + LARGEST_HOP
        if pages < least:
            need = least * PagePool.page_bytes(flow) / 1e9
            raise ConfigError(f"decode.cache_gb, or the GPU's free memory, is too small: {need:.1f} GB are the least.")
        if slots < WAVE:
            raise ConfigError(f"decode.batch is {slots}, but a GPU computes at least {WAVE} chunks at once.")
        self._pool = PagePool(flow, pages)
        self._batch = flow_batch(flow, self._pool, slots)
        self._vocode = vocode or self._vocode_plainly
        self._clock = clock
        self._rate = hift.config.source.sample_rate
        self._tracks: dict[Hashable, Track] = {}
        self._voices = VoicePasts(flow, self._pool)
        self._running: dict[FlowTask, Owner] = {}
        self._outgoing = Outgoing()
        self._behind: deque[Moment] = deque()
        self._joins, self._vocoding = SideStream(flow.device), SideStream(flow.device)
        self._joining: dict[FlowTask, Owner] = {}
        self._gathering = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self._outgoing) or any(track.ready() for track in self._tracks.values())

    @property
    def free_slots(self) -> int:
        """Chunks that could be computed beside those that are."""
        return self._batch.free_slots

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        return self._pool.free

    def prepare(self, frames: int) -> None:
        """Captures the CUDA graphs for requests of up to `frames` frames, prompt included."""
        self._batch.prepare(-(-frames // (FRAMES_A_TOKEN * self._chunk)))

    @torch.inference_mode()
    def open(self, key: Hashable, voice: VoicePrompt, **options: object) -> None:
        if len(voice.tokens) + self._chunk > self._longest:
            limit = self._longest - self._chunk
            raise InvalidInput(f"The voice's prompt has more than {limit} tokens; use a shorter one.", field="voice")
        super().open(key, voice, **options)  # type: ignore[arg-type]
        track = Track(self._streams[key], self._voices.get(voice), self._clock())
        track.voice.users += 1
        self._tracks[key] = track

    def close(self, key: Hashable) -> bool:
        track = self._tracks.pop(key, None)
        if track is not None:
            self._forget(track)
        return super().close(key)

    def forget_voice(self, key: str) -> None:
        self._voices.forget(key)

    @torch.inference_mode()
    def step(self) -> list[DecodeStep]:
        wordless = self._finish_wordless()
        for step in wordless:
            self._forget(self._tracks.pop(step.key))
        if self._joins_due():
            self._admit()
        if self._running:
            self._finish(self._batch.tick(list(self._running)))
            self._keep_pace()
        # The features of what joins are made beside the tick before its first.
        self._joins.join()
        self._running |= self._joining
        self._joining = {}
        arrivals = self._outgoing.arrivals(wait=not (self._running or wordless))
        return wordless + [self._hand_out(made) for made in arrivals if made.track in self._tracks.values()]

    def _joins_due(self) -> bool:
        self._gathering += 1
        due = self._gathering >= GATHER or sum(task.chunks for task in self._running) < CROWD
        if due:
            self._gathering = 0
        return due

    # ---- what to compute ------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Gives the most urgent work that is ready the free slots."""
        now = self._clock()
        order = sorted(self._tracks.values(), key=lambda track: track.urgency(now, self._rate))
        joining: list[FlowTask] = []
        room = self._batch.free_slots
        for place, track in enumerate(order):
            hop = track.ready()
            if hop is None:
                continue
            if not track.stream.chunked:
                self._compute_whole(track, hop)
                continue
            work = self._next(track, hop)
            if work is None:
                continue
            owner, first, last, final = work
            others = order[place + 1 :] if self._running or joining else order[:place] + order[place + 1 :]
            if last - first > room or not self._make_room(last - first, others):
                break
            room -= last - first
            joining.append(self._task(track, owner, first, last, final, hop))
        if joining:
            with self._joins.after():
                self._batch.join(joining)

    def _next(self, track: Track, hop: Hop) -> tuple[Owner, int, int, bool] | None:
        """Whose pages to fill for `hop`, from which chunk to which, and whether the speech ends there."""
        voice = track.voice
        if not track.pages:
            if voice.task is not None:
                return None
            if len(voice.pages) < voice.whole:
                return voice, len(voice.pages), min(voice.whole, len(voice.pages) + WAVE), False
            for page in voice.pages:
                self._pool.share(page)
            track.pages = list(voice.pages)
        done = len(track.pages)
        first, last = (len(voice.tokens) + hop.start) // self._chunk, -(-(len(voice.tokens) + hop.end) // self._chunk)
        # What a first hop computes again is the prompt, of which nothing is to be heard.
        if done < first and (hop.index or last - done > WAVE):
            return track, done, min(first, done + WAVE), False
        return track, done, last, hop.final

    def _task(self, track: Track, owner: Owner, first: int, last: int, final: bool, hop: Hop) -> FlowTask:
        voice = track.voice
        end = len(voice.tokens) + hop.given if final else last * self._chunk + self._look_ahead
        tokens = self._tokens(track.stream, hop, first * self._chunk)[: end - first * self._chunk]
        owner.pages += [self._pool.take() for _ in range(last - first)]
        task = FlowTask(list(owner.pages), first, tokens, final, voice.speaker, voice.prompt)
        owner.task = task
        self._joining[task] = owner
        if isinstance(owner, Track) and last * self._chunk >= len(voice.tokens) + hop.end:
            owner.hop = hop
        return task

    def _make_room(self, pages: int, others: Sequence[Track]) -> bool:
        """Whether `pages` pages are free, after giving up those of unused voices and of the least urgent `others`."""
        late = [track for track in reversed(others) if track.task is None and track.pages]
        victims: list[Owner] = [*self._voices.unused(), *late]
        for victim in victims:
            if self._pool.free >= pages:
                break
            give_up(victim, self._pool)
        return self._pool.free >= pages

    def _forget(self, track: Track) -> None:
        if track.task is not None:
            self._batch.leave(track.task)
            del self._running[track.task]
            track.task = None
        give_up(track, self._pool)
        track.voice.users -= 1

    # ---- what came of it ------------------------------------------------------------------------------------------

    def _finish(self, tasks: Sequence[FlowTask]) -> None:
        """Tasks that have done their last step: their requests go on, and hops among them become audio."""
        hops: list[tuple[Track, Tensor]] = []
        for task in tasks:
            owner = self._running.pop(task)
            owner.task = None
            if isinstance(owner, Track) and owner.hop is not None:
                hops.append((owner, self._spoken(owner.stream, self._batch.mel(task), task.first * self._chunk)))
            self._batch.leave(task)
        self._sound(hops)

    def _sound(self, hops: Sequence[tuple[Track, Tensor]]) -> None:
        """Vocodes the mel of hops, and sends both on their way to the host."""
        with self._vocoding.after(*(mel for _, mel in hops)):
            works = [_vocoder_hop(track, mel) for track, mel in hops if track.stream.output == "audio"]
            results = iter(self._vocode(works) if works else ())
            for track, mel in hops:
                self._go_on(track, mel, next(results) if track.stream.output == "audio" else None)

    def _go_on(self, track: Track, mel: Tensor, vocoded: VocoderResult | None) -> None:
        """Moves `track` past its hop, which gave `mel` and `vocoded`."""
        stream, hop = track.stream, track.hop
        assert hop is not None
        self._outgoing.send(track, hop, mel, None if vocoded is None else vocoded.audio)
        stream.vocoder = None if vocoded is None else vocoded.state
        stream.schedule = stream.schedule.after(hop)
        track.made += 0 if vocoded is None else len(vocoded.audio)
        track.hop = None
        track.ended = hop.final
        if hop.final:
            give_up(track, self._pool)

    def _compute_whole(self, track: Track, hop: Hop) -> None:
        """A whole request at once, without chunk mask."""
        stream, voice = track.stream, track.voice
        state = self.flow.start(torch.from_numpy(stream.voice.embedding), voice.prompt)
        tokens = torch.from_numpy(self._tokens(stream, hop, 0).astype(np.int64)).to(self.flow.device)
        [result] = self.flow.advance([FlowHop(state, tokens, final=True)], chunked=False)
        track.hop = hop
        self._sound([(track, self._spoken(stream, result.mel, 0))])

    def _vocode_plainly(self, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
        return vocode(self.hift, hops)

    def _keep_pace(self) -> None:
        self._behind.append(Moment(self.flow.device))
        if len(self._behind) > AHEAD:
            self._behind.popleft().wait()

    def _hand_out(self, made: Made) -> DecodeStep:
        track = made.track
        mel, audio = made.results(self.hift.config.bins)
        if track.heard is None and len(audio):
            track.heard = self._clock()
        step = self._deliver(track.stream, made.hop, mel, audio)
        if made.hop.final:
            self._forget(self._tracks.pop(track.stream.key))
        return step


def _vocoder_hop(track: Track, mel: Tensor) -> VocoderHop:
    assert track.hop is not None
    return VocoderHop(track.stream.vocoder, mel, track.hop.final, track.stream.seed)
