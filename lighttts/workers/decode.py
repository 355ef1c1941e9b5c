"""lighttts-decode: speech tokens to mel and audio, hops of many requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NoReturn, cast

import torch

from lighttts import metrics
from lighttts.config import Config
from lighttts.engine.decode import DecodeEngine
from lighttts.engine.decode_paged import PagedDecodeEngine
from lighttts.engine.decode_stream import DecodeStep
from lighttts.engine.decode_streams import DecodeStreams
from lighttts.engine.flow_batch import FlowBatch
from lighttts.engine.flow_pages import PagePool
from lighttts.engine.vocoder import Vocoder
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import Flow, load_flow
from lighttts.models.hift import load_hift
from lighttts.models.silence import silent_tokens
from lighttts.tensorrt.backend import use_tensorrt
from lighttts.tensorrt.flow_batch import TensorRTFlowBatch
from lighttts.transport import wire
from lighttts.workers.model import dtype_of, model_name, observe_device, own_stream, pick_device, watch_modules
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.service import Service, run_worker
from lighttts.workers.speech import FRAMES_PER_SECOND, Speech
from lighttts.workers.stage import Boot, Result, Stage, Work, failed, typed

_NAME = "decode"
GPU_CHUNKS = 128
"""Chunks computed at once on a GPU."""
GPU_HOPS = 16
"""Hops vocoded at once on a GPU."""
CACHE_SHARE = 0.75
"""Of the memory free at the start, what pasts may take; the rest is for graphs, and for another worker."""
PAGES_A_STREAM = 2
"""Pages for each stream: with fewer, most of the work would be computing again what was given up."""
PREPARED_FRAMES = 400
"""Frames of requests, prompt included, for which everything is captured at the start."""
DOOMED_S = 900.0
"""Seconds after a voice's removal in which requests of it may still come: what they leave is dropped as well."""


class DecodeStage(Stage):
    """The sentences of a request one after another, each a stream of the engine; requests side by side."""

    name = _NAME
    takes = wire.DecodeWork
    feeds = wire.Tokens
    unit = "s of speech"

    def __init__(
        self,
        engine: DecodeStreams,
        epoch: int,
        capacity: int,
        silent: frozenset[int] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`silent`: the model's silent tokens, of which only so many in a row are spoken."""
        super().__init__(epoch, capacity)
        self._engine = engine
        self._silent = silent
        self._requests: dict[Work, Speech] = {}
        self._doomed: dict[str, float] = {}
        self._clock = clock

    @property
    def busy(self) -> bool:
        return self._engine.busy

    @property
    def waiting(self) -> int:
        return len(self._requests) - self._engine.streams

    def accept(self, work: Work, message: wire.Message) -> None:
        if isinstance(message, wire.DecodeWork):
            metrics.requests_total.labels(_NAME, message.output).inc()
            self._requests[work] = Speech(work, message, self._silent)
        else:
            assert isinstance(message, wire.Tokens)
            speech = self._requests[work]
            speech.receive(message)
            self._feed(speech)

    def abort(self, work: Work) -> None:
        speech = self._requests.pop(work, None)
        if speech and speech.stream:
            self._engine.close(speech.stream)
        if speech:
            self._let_go(speech.voice.key)

    def forget(self, message: wire.Forget) -> None:
        now = self._clock()
        self._doomed = {key: until for key, until in self._doomed.items() if until > now}
        for key in message.voice_keys:
            self._doomed[key] = now + DOOMED_S
            self._let_go(key)

    def begin(self) -> None:
        own_stream(self._engine.flow.device, high_priority=False)

    def watch(self, moved: Callable[[], None]) -> None:
        watch_modules((self._engine.flow.decoder.estimator, *self._engine.hift.resblocks), moved)

    def step(self) -> list[Result]:
        steps = self._engine.step()
        metrics.batch_size.labels(_NAME).observe(len(steps))
        return [result for step in steps for result in self._results(step)]

    def _results(self, step: DecodeStep) -> list[Result]:
        work, _ = cast(tuple[Work, int], step.key)
        speech = self._requests[work]
        self.made += len(step.mel) / FRAMES_PER_SECOND
        results = speech.results(step, self.epoch)
        if results and results[-1].ends:
            del self._requests[work]
            self._let_go(speech.voice.key)
        elif step.finished:
            try:
                self._feed(speech)
            except Exception as error:
                self.abort(work)
                results.append(failed(work, self.epoch, typed(error, _NAME, work)))
        return results

    def _let_go(self, key: str) -> None:
        """Has the engine forget a voice that was removed, unless a request speaks with it."""
        doomed = self._doomed.get(key, 0.0) > self._clock()
        if doomed and all(speech.voice.key != key for speech in self._requests.values()):
            self._engine.forget_voice(key)

    def _feed(self, speech: Speech) -> None:
        """Gives the engine the tokens of the sentence that is due, opening its stream with the first of them."""
        message = speech.message
        output = cast(Literal["audio", "mel"], message.output)
        for tokens, final in speech.due():
            key = (speech.work, speech.sentence)
            if speech.stream is None:
                seed = sentence_seed(message.seed, speech.sentence)
                self._engine.open(key, speech.voice, seed=seed, output=output, speed=message.speed)
                speech.stream = key
            self._engine.feed(key, tokens, final)


def _engine(config: Config, directory: ModelDirectory, device: torch.device) -> DecodeStreams:
    flow = load_flow(directory, device, dtype_of(config.model.dtype))
    # The vocoder's weights stay in single precision, as upstream runs it: its phase does not survive less.
    hift = load_hift(directory, device)
    decode = config.decode
    flow_batch: Callable[[Flow, PagePool, int], FlowBatch] = FlowBatch
    if decode.engine == "tensorrt":
        velocity = use_tensorrt(flow, directory, decode.engine_cache)
        if velocity is not None:
            flow_batch = partial(TensorRTFlowBatch, velocity=velocity)
    if device.type != "cuda":
        return DecodeEngine(flow, hift, max_batch=decode.batch or 1, max_streams=decode.streams)
    cache = decode.cache_gb * 1e9 if decode.cache_gb else CACHE_SHARE * torch.cuda.mem_get_info(device)[0]
    pages = int(cache / PagePool.page_bytes(flow))
    engine = PagedDecodeEngine(
        flow,
        hift,
        max_streams=min(decode.streams, pages // PAGES_A_STREAM),
        slots=decode.batch or GPU_CHUNKS,
        pages=pages,
        vocode=Vocoder(hift, max_batch=GPU_HOPS).vocode,
        flow_batch=flow_batch,
    )
    engine.prepare(PREPARED_FRAMES)
    return engine


def service(config: Config) -> Service:
    """The worker that `config` describes, its model loaded. Raises `ConfigError`, `ModelError`."""
    torch.set_num_threads(config.decode.threads)
    device = pick_device(config.model.device)
    directory = ModelDirectory.open(config.model.directory)
    engine = _engine(config, directory, device)
    boot = Boot(_NAME, model_name(directory), directory.sample_rate)
    stage = DecodeStage(engine, boot.epoch, engine.max_streams, silent_tokens(directory))
    return Service(stage, boot, config, config.decode.metrics_port, lambda: observe_device(device))


def main() -> NoReturn:
    """Console script."""
    run_worker(_NAME, "Decodes speech tokens to mel and audio.", service)


if __name__ == "__main__":
    main()
