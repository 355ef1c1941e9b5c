"""lighttts-llm: text tokens to speech tokens, many requests at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from lighttts import metrics
from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.engine.llm_spacing import Spacing
from lighttts.errors import ProtocolError
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import load_llm
from lighttts.transport import wire
from lighttts.workers.model import dtype_of, model_name, observe_device, own_stream, pick_device, watch_modules
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.service import Service, serve
from lighttts.workers.stage import Boot, Result, Stage, Work, failed, typed

_NAME = "llm"
_EARLY_TOKENS = 60
"""Tokens of a request that travel in small frames: the decode worker's first hop, up to 49 and 3, waits for them."""
_EARLY_FRAME = 4
_FRAME = 10
"""Tokens a frame later on, when hops are longer and playback is ahead."""


_NO_TOKENS = np.zeros(0, np.int32)


class _Request:
    """One request: which sentence it is at, and the tokens that have not been sent."""

    def __init__(self, work: Work, message: wire.GenerateWork) -> None:
        if not message.lengths or sum(message.lengths) != len(message.text_ids):
            raise ProtocolError("GenerateWork.lengths do not add up to its text_ids", field="lengths")
        if message.sentence >= len(message.lengths):
            raise ProtocolError("GenerateWork.sentence is none of its sentences", field="sentence")
        self.work = work
        self.message = message
        self.sentences = np.split(message.text_ids, np.cumsum(message.lengths)[:-1])
        self.sentence = message.sentence
        self.seq = message.seq
        self.sent = 0
        self.unsent: list[int] = []

    def job(self) -> GenerateJob:
        """The job of the sentence that is due."""
        text: npt.NDArray[np.int32] = self.sentences[self.sentence]
        return GenerateJob(
            key=self.work,
            text=np.concatenate([self.message.prompt_text_ids, text]),
            text_tokens=len(text),
            prompt_tokens=self.message.llm_prompt_tokens,
            seed=sentence_seed(self.message.seed, self.sentence),
            done_tokens=self.message.done_tokens if self.sentence == self.message.sentence else _NO_TOKENS,
        )

    def frame_due(self) -> bool:
        return len(self.unsent) >= (_EARLY_FRAME if self.sent < _EARLY_TOKENS else _FRAME)

    def frame(self, epoch: int, *, final: bool) -> Result:
        """The unsent tokens; `final` ends the sentence."""
        last = final and self.sentence == len(self.sentences) - 1
        tokens = np.array(self.unsent, np.int32)
        message = wire.Tokens(*self.work.named, epoch, self.seq, self.sentence, final, last, tokens)
        self.seq += 1
        self.sent += len(self.unsent)
        self.sentence += final
        self.unsent = []
        return Result(self.work, message, ends=last)


class LLMStage(Stage):
    """The sentences of a request one after another, those of different requests side by side."""

    name = _NAME
    takes = wire.GenerateWork
    unit = "tokens"

    def __init__(self, engine: LLMEngine, epoch: int, capacity: int, spacing: Spacing | None = None) -> None:
        super().__init__(epoch, capacity)
        self._engine = engine
        self._spacing = spacing
        self._requests: dict[Work, _Request] = {}

    @property
    def busy(self) -> bool:
        return self._engine.busy

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    def accept(self, work: Work, message: wire.Message) -> None:
        assert isinstance(message, wire.GenerateWork)
        metrics.requests_total.labels(_NAME, "generate").inc()
        request = _Request(work, message)
        self._engine.add(request.job())
        self._requests[request.work] = request

    def abort(self, work: Work) -> None:
        self._requests.pop(work, None)
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
            request.unsent += step.tokens
            self.made += len(step.tokens)
            if step.finished:
                results += self._finish(request)
            elif request.frame_due():
                results.append(request.frame(self.epoch, final=False))
        return results

    def _finish(self, request: _Request) -> list[Result]:
        """Ends the sentence, and begins the next one at once: nobody needs to have heard this one."""
        frame = request.frame(self.epoch, final=True)
        if frame.ends:
            del self._requests[request.work]
            return [frame]
        try:
            self._engine.add(request.job())
        except Exception as error:
            del self._requests[request.work]
            return [frame, failed(request.work, self.epoch, typed(error, _NAME, request.work))]
        return [frame]


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
    )
    names = ("", style) if style == directory.style("") else (style,)
    boot = Boot(_NAME, model_name(directory, style), directory.sample_rate, styles=tuple(dict.fromkeys(names)))
    spacing = Spacing(config.llm.step_ms / 1000) if device.type == "cuda" else None
    stage = LLMStage(engine, boot.epoch, config.llm.slots, spacing)
    return Service(stage, boot, config, config.llm.metrics_port, lambda: observe_device(device))


def _run(config: Config) -> int:
    return serve(service(config))


def main() -> int:
    """Console script."""
    return run_daemon(_NAME, "Generates speech tokens from what lighttts-encode made of the text.", _run)


if __name__ == "__main__":
    sys.exit(main())
