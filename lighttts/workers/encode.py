"""lighttts-encode: text to text tokens, recordings to speech tokens and voice features."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

import numpy as np
import torch

from lighttts import metrics
from lighttts.config import Config
from lighttts.frontend.encode import ConvertJob, Encoded, EncodeEngine, EncodeJob
from lighttts.frontend.prompt import Int32, VoiceFeatures
from lighttts.models.directory import ModelDirectory
from lighttts.transport import wire
from lighttts.workers.model import model_name
from lighttts.workers.service import Service, run_worker
from lighttts.workers.stage import Boot, Result, Stage, Work, failed, typed

_NAME = "encode"
_NONE = np.zeros(0, np.int32)
_Work = wire.EncodeWork | wire.ConvertWork | wire.CheckWork | wire.TextWork


class EncodeStage(Stage):
    """Requests one after another, in the order they came."""

    name = _NAME
    takes = _Work
    unit = "requests"
    long_step = 8.0

    def __init__(self, engine: EncodeEngine, epoch: int, capacity: int) -> None:
        super().__init__(epoch, capacity)
        self._engine = engine
        self._queue: deque[tuple[Work, _Work]] = deque()
        self._counted = {"hit": 0, "miss": 0}

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def accept(self, work: Work, message: wire.Message) -> None:
        assert isinstance(message, _Work)
        metrics.requests_total.labels(_NAME, _method(message)).inc()
        self._queue.append((work, message))

    def abort(self, work: Work) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] != work)

    def step(self) -> list[Result]:
        work, message = self._queue.popleft()
        metrics.batch_size.labels(_NAME).observe(1)
        try:
            encoded = self._encoded(work, message)
        except Exception as error:
            return [failed(work, self.epoch, typed(error, _NAME, work))]
        self.made += 1
        return [Result(work, encoded, ends=True)]

    def _encoded(self, work: Work, message: _Work) -> wire.Encoded | wire.EncodedText:
        if isinstance(message, wire.TextWork):
            live = self._engine.write(message.text, message.pieces, flush=message.flush)
            ids = np.concatenate([_NONE, *live.sentences])
            return wire.EncodedText(*work.named, self.epoch, _lengths(live.sentences), live.whole, live.used, ids)
        if isinstance(message, wire.ConvertWork):
            converted = self._engine.convert(ConvertJob(message.source, message.voice, message.prompt))
            return replace(_blank(work, self.epoch, converted.voice), source_tokens=converted.tokens)
        if isinstance(message, wire.CheckWork):
            return _blank(work, self.epoch, self._engine.check(message.prompt, message.prompt_text))
        job = EncodeJob(
            message.text, message.voice, message.prompt, message.prompt_text, message.instruct, message.pieces
        )
        encoded = self._engine.encode(job)
        return _text(encoded, _blank(work, self.epoch, encoded.voice))

    def forget(self, message: wire.Forget) -> None:
        self._engine.cache.forget(message.digest)

    def observe(self) -> None:
        """Updates the cache's metrics, and lets go of what is too old."""
        cache = self._engine.cache
        cache.expire()
        for result, count in (("hit", cache.hits), ("miss", cache.misses)):
            metrics.cache_lookups.labels("voice", result).inc(count - self._counted[result])
            self._counted[result] = count
        metrics.cache_hit_rate.labels("voice").set(cache.hits / max(1, cache.hits + cache.misses))


def _method(message: _Work) -> str:
    if isinstance(message, wire.ConvertWork):
        return "conversion"
    if isinstance(message, wire.CheckWork):
        return "voice"
    if isinstance(message, wire.TextWork):
        return "text"
    if message.instruct.strip():
        return "instruct"
    if message.voice:
        return "preset"
    return "zero_shot" if message.prompt_text.strip() else "cross_lingual"


def _text(encoded: Encoded, blank: wire.Encoded) -> wire.Encoded:
    ids = [sentence.ids for sentence in encoded.sentences]
    return replace(
        blank,
        lengths=_lengths(ids),
        text_ids=np.concatenate([_NONE, *ids]),
        pieces=encoded.pieces,
        lead=encoded.lead if encoded.pieces else 0,
        prompt_text_ids=encoded.prompt_text_ids,
        llm_prompt_tokens=encoded.llm_prompt_tokens,
    )


def _lengths(sentences: Iterable[Int32]) -> tuple[int, ...]:
    return tuple(map(len, sentences))


def _blank(work: Work, epoch: int, voice: VoiceFeatures) -> wire.Encoded:
    """A result with nothing yet to say, in `voice`."""
    return wire.Encoded(
        *work.named,
        epoch,
        lengths=(),
        voice_key=voice.key,
        text_ids=_NONE,
        prompt_text_ids=_NONE,
        llm_prompt_tokens=_NONE,
        voice_tokens=voice.tokens,
        voice_mel=voice.mel,
        voice_embedding=voice.embedding,
    )


def service(config: Config) -> Service:
    """The worker that `config` describes, its model loaded. Raises `ConfigError`, `ModelError`."""
    torch.set_num_threads(config.encode.threads)
    directory = ModelDirectory.open(config.model.directory)
    settings = config.encode
    engine = EncodeEngine(directory, int(settings.cache_mb * 2**20), settings.threads, settings.cache_s)
    boot = Boot(_NAME, model_name(directory), directory.sample_rate, tuple(engine.voices))
    stage = EncodeStage(engine, boot.epoch, config.encode.concurrency)
    return Service(stage, boot, config, config.encode.metrics_port, stage.observe)


def main() -> NoReturn:
    """Console script."""
    run_worker(_NAME, "Encodes text and voices for lighttts-llm and lighttts-decode.", service)


if __name__ == "__main__":
    main()
