"""lighttts-llm: text tokens to speech tokens, many requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn, cast

import torch

from lighttts import metrics
from lighttts.config import Config
from lighttts.engine.llm import LLMEngine
from lighttts.engine.llm_spacing import Spacing
from lighttts.errors import ProtocolError
from lighttts.models.directory import ModelDirectory
from lighttts.models.interleave import read_mix
from lighttts.models.llm import load_llm
from lighttts.transport import wire
from lighttts.workers.generation import Generation, LiveGeneration
from lighttts.workers.model import dtype_of, model_name, observe_device, own_stream, pick_device, watch_modules
from lighttts.workers.service import Service, run_worker
from lighttts.workers.stage import Boot, Result, Stage, Work, failed, typed

_NAME = "llm"


class LLMStage(Stage):
    """The sentences of a request one after another, those of different requests side by side."""

    name = _NAME
    takes = wire.GenerateWork
    feeds = wire.MoreText
    unit = "tokens"

    def __init__(self, engine: LLMEngine, epoch: int, capacity: int, spacing: Spacing | None = None) -> None:
        super().__init__(epoch, capacity)
        self._engine = engine
        self._spacing = spacing
        self._requests: dict[Work, Generation] = {}
        self._over: dict[Work, Generation] = {}
        """Those of which only the end is to be told."""

    @property
    def busy(self) -> bool:
        return self._engine.busy or bool(self._over)

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    def accept(self, work: Work, message: wire.Message) -> None:
        if isinstance(message, wire.MoreText):
            live = self._requests[work]
            if not isinstance(live, LiveGeneration):
                raise ProtocolError("MoreText for a request whose text is there")
            live.more(message)
            self._proceed(live)
            return
        assert isinstance(message, wire.GenerateWork)
        metrics.requests_total.labels(_NAME, message.pieces or "generate").inc()
        request = (LiveGeneration if message.pieces else Generation)(work, message)
        self._proceed(request)
        self._requests[work] = request

    def abort(self, work: Work) -> None:
        self._requests.pop(work, None)
        self._over.pop(work, None)
        self._engine.cancel(work)

    def begin(self) -> None:
        own_stream(self._engine.model.device, high_priority=True)

    def watch(self, moved: Callable[[], None]) -> None:
        watch_modules(self._engine.model.body.layers, moved)

    def step(self) -> list[Result]:
        if self._spacing:
            full = bool(self._engine.waiting and not self._engine.free_slots)
            time.sleep(self._spacing.pause(self._engine.active, full=full))
        steps = self._engine.step()
        metrics.batch_size.labels(_NAME).observe(len(steps))
        results = []
        for step in steps:
            request = self._requests[cast(Work, step.key)]
            self.made += len(step.tokens)
            results += request.results(step, self.epoch)
            if step.finished:
                results += self._go_on(request, ended=results[-1].ends)
        results += [request.end(self.epoch) for request in self._over.values()]
        for work in self._over:
            del self._requests[work]
        self._over.clear()
        return results

    def _go_on(self, request: Generation, *, ended: bool) -> list[Result]:
        """Begins the next sentence at once: nobody needs to have heard the one before."""
        if ended:
            del self._requests[request.work]
            return []
        try:
            self._proceed(request)
        except Exception as error:
            self.abort(request.work)
            return [failed(request.work, self.epoch, typed(error, _NAME, request.work))]
        return []

    def _proceed(self, request: Generation) -> None:
        if request.proceed(self._engine):
            self._over[request.work] = request


def service(config: Config) -> Service:
    """The worker that `config` describes, its model loaded. Raises `ConfigError`, `ModelError`."""
    torch.set_num_threads(config.llm.threads)
    device = pick_device(config.model.device)
    directory = ModelDirectory.open(config.model.directory)
    style = directory.style(config.llm.style)
    engine = LLMEngine(
        load_llm(directory, device, dtype_of(config.model.dtype), style),
        slots=config.llm.slots,
        max_length=config.llm.max_length,
        prefill_tokens=config.llm.prefill_tokens,
        mix=read_mix(directory),
    )
    names = ("", style) if style == directory.style("") else (style,)
    boot = Boot(_NAME, model_name(directory, style), directory.sample_rate, styles=tuple(dict.fromkeys(names)))
    spacing = Spacing(config.llm.step_ms / 1000) if device.type == "cuda" else None
    stage = LLMStage(engine, boot.epoch, config.llm.slots, spacing)
    return Service(stage, boot, config, config.llm.metrics_port, lambda: observe_device(device))


def main() -> NoReturn:
    """Console script."""
    run_worker(_NAME, "Generates speech tokens from what lighttts-encode made of the text.", service)


if __name__ == "__main__":
    main()
