"""lighttts-decode: speech tokens to mel and audio, hops of many requests at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal, cast

import torch

from lighttts import metrics
from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.engine.decode import DecodeEngine, DecodeStep
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift
from lighttts.transport import wire
from lighttts.workers.model import dtype_of, model_name, observe_device, pick_device, watch_modules
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.service import serve
from lighttts.workers.speech import FRAMES_PER_SECOND, Speech
from lighttts.workers.stage import Boot, Result, Stage, Work, failed, typed

_NAME = "decode"
GPU_BATCH = 16


class DecodeStage(Stage):
    """The sentences of a request one after another, each a stream of the engine; requests side by side."""

    name = _NAME
    takes = wire.DecodeWork
    feeds = wire.Tokens
    unit = "s of speech"

    def __init__(self, engine: DecodeEngine, epoch: int, capacity: int) -> None:
        super().__init__(epoch, capacity)
        self._engine = engine
        self._requests: dict[Work, Speech] = {}

    @property
    def busy(self) -> bool:
        return self._engine.busy

    @property
    def waiting(self) -> int:
        return len(self._requests) - self._engine.streams

    def accept(self, work: Work, message: wire.Message) -> None:
        if isinstance(message, wire.DecodeWork):
            metrics.requests_total.labels(_NAME, message.output).inc()
            self._requests[work] = Speech(work, message)
        else:
            assert isinstance(message, wire.Tokens)
            speech = self._requests[work]
            speech.receive(message)
            self._feed(speech)

    def abort(self, work: Work) -> None:
        speech = self._requests.pop(work, None)
        if speech and speech.stream:
            self._engine.close(speech.stream)

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
        elif step.finished:
            try:
                self._feed(speech)
            except Exception as error:
                self.abort(work)
                results.append(failed(work, self.epoch, typed(error, _NAME, work)))
        return results

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


def _run(config: Config) -> int:
    torch.set_num_threads(config.decode.threads)
    device = pick_device(config.model.device)
    directory = ModelDirectory.open(config.model.directory)
    engine = DecodeEngine(
        load_flow(directory, device, dtype_of(config.model.dtype)),
        # The vocoder stays in single precision, as upstream runs it: its phase does not survive less.
        load_hift(directory, device),
        max_batch=config.decode.batch or (GPU_BATCH if device.type == "cuda" else 1),
        max_streams=config.decode.streams,
    )
    boot = Boot(_NAME, model_name(directory), directory.sample_rate)
    stage = DecodeStage(engine, boot.epoch, config.decode.streams)
    return serve(stage, boot, config, config.decode.metrics_port, lambda: observe_device(device))


def main() -> int:
    """Console script."""
    return run_daemon(_NAME, "Decodes speech tokens to mel and audio.", _run)


if __name__ == "__main__":
    sys.exit(main())
