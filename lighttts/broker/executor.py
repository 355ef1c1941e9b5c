"""Carries out the core's instructions: sends, stores, observes, logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from lighttts import metrics
from lighttts.broker.core import Core
from lighttts.broker.instructions import (
    WRITES,
    Fetch,
    Instruction,
    Log,
    Metric,
    Observe,
    Reply,
)
from lighttts.broker.outbox import Channel, Outbox
from lighttts.broker.state import StateStore
from lighttts.broker.voice_questions import AskVoices
from lighttts.logs import get_logger
from lighttts.transport.transport import Delivery, Router

SERVICE = "broker"


class Executor:
    """Does what `core` says, in order; `clock` tells the core when something came of it.

    `fetch_request` begins to fetch a stored request, `ask_voices` asks the keeper of voices.
    """

    def __init__(
        self,
        core: Core,
        clients: Router,
        workers: Router,
        store: StateStore,
        clock: Callable[[], float],
        fetch_request: Callable[[str], None],
        ask_voices: Callable[[AskVoices], None],
    ) -> None:
        self._core = core
        self._clients = clients
        self._workers = workers
        self._clock = clock
        self._log = get_logger()
        self._later: deque[Instruction] = deque()
        self._sinks = _sinks()
        self._handlers: dict[type, Callable[..., None]] = {
            Outbox: self._flush,
            Observe: self._observe,
            Reply: self._reply,
            Log: self._write_log,
            Fetch: lambda fetch: fetch_request(fetch.request_id),
            AskVoices: ask_voices,
            **dict.fromkeys(WRITES, store.write),
        }

    def run(self, instructions: Iterable[Instruction]) -> None:
        """Carries out `instructions`, then those that came of them."""
        handlers = self._handlers
        for instruction in instructions:
            handlers[type(instruction)](instruction)
        while self._later:
            instruction = self._later.popleft()
            handlers[type(instruction)](instruction)

    def _flush(self, outbox: Outbox) -> None:
        send = (self._clients if outbox.channel is Channel.CLIENTS else self._workers).send
        while (frames := outbox.ready()) is not None:
            delivery = send(outbox.peer, frames)
            if delivery is Delivery.SENT:
                outbox.sent()
            elif delivery is Delivery.FULL:
                self._core.full(outbox)
                return
            else:
                self._later.extend(self._core.gone(outbox.channel, outbox.peer, self._clock()))
                return

    def _reply(self, reply: Reply) -> None:
        router = self._clients if reply.channel is Channel.CLIENTS else self._workers
        delivery = router.send(reply.peer, reply.frames)
        if delivery is Delivery.GONE:
            self._later.extend(self._core.gone(reply.channel, reply.peer, self._clock()))
        elif delivery is Delivery.FULL:
            self._core.unanswered(reply)

    def _observe(self, observation: Observe) -> None:
        self._sinks[observation.metric](observation.value, observation.label)

    def _write_log(self, log: Log) -> None:
        getattr(self._log, log.level)(log.event, **log.fields)


def _sinks() -> dict[Metric, Callable[[float, str], None]]:
    """Where each metric's observations go."""
    duration, intervals = metrics.request_duration.labels(SERVICE), metrics.chunk_interval.labels(SERVICE)
    frames = {kind: metrics.frames_total.labels(SERVICE, kind) for kind in ("tokens", "mel", "audio")}
    return {
        Metric.REQUESTS: lambda value, method: metrics.requests_total.labels(SERVICE, method).inc(value),
        Metric.FAILURES: lambda value, code: metrics.requests_failed.labels(SERVICE, code).inc(value),
        Metric.PARKED: lambda value, _: metrics.requests_parked.inc(value),
        Metric.RESUMED: lambda value, _: metrics.requests_resumed.inc(value),
        Metric.DURATION: lambda value, _: duration.observe(value),
        Metric.FIRST_AUDIO: lambda value, _: metrics.first_audio.observe(value),
        Metric.REAL_TIME_FACTOR: lambda value, _: metrics.real_time_factor.observe(value),
        Metric.CHUNK_INTERVAL: lambda value, _: intervals.observe(value),
        Metric.UNDERRUNS: lambda value, _: metrics.underruns_total.inc(value),
        Metric.STAGE: lambda value, stage: metrics.stage_seconds.labels(stage).observe(value),
        Metric.WORKER_FAILURES: lambda value, stage: metrics.breaker_failures.labels(stage).inc(value),
        Metric.FRAMES: lambda value, kind: frames[kind].inc(value),
        Metric.REFUSED: lambda value, why: metrics.frames_refused.labels(SERVICE, why).inc(value),
    }
