"""The broker's loop: sockets, timers and the state store around the core."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from lighttts import metrics
from lighttts.broker.core import Core
from lighttts.broker.door import Door
from lighttts.broker.executor import SERVICE, Executor
from lighttts.broker.fetch import Fetcher
from lighttts.broker.outbox import Channel
from lighttts.broker.quota import KEYED
from lighttts.broker.state import Found, StateStore, StoreEvents
from lighttts.broker.stores import open_store, open_voices
from lighttts.broker.voice_keeper import VoiceKeeper
from lighttts.broker.voice_questions import Answer
from lighttts.config import BrokerConfig
from lighttts.errors import InternalError, LightTTSError
from lighttts.logs import get_logger
from lighttts.notify import notify, watchdog_interval
from lighttts.transport.entrance import open_entrances
from lighttts.transport.keyfiles import KeyFolder
from lighttts.transport.reactor import Reactor
from lighttts.transport.security import Domain, Guard, Refusal
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Link, Router, Sockets

TICK_S = 0.1
REPORT_S = 1.0
DRAIN_S = 60.0
"""Seconds that requests in flight have to finish after the broker was told to end."""
ACKNOWLEDGE_S = 2.0
"""Seconds that clients then have to acknowledge what they got."""
STORE_CLOSE_S = 3.0
STUCK_S = 5.0


class Endpoints(NamedTuple):
    """Where the broker listens, with wildcard ports resolved."""

    clients: str
    workers: str
    results: str


class App:
    """One broker. Listens from the start, serves while `run` runs. With `keys` its tcp sockets take only allowed keys.

    Raises `ConfigError` when an endpoint, key or metrics port cannot be used, `Unavailable` when Redis does not answer.
    """

    def __init__(
        self,
        settings: BrokerConfig,
        *,
        options: SocketOptions | None = None,
        keys: KeyFolder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._log = get_logger()
        self._reactor = Reactor(clock)
        self._crash: BaseException | None = None
        self._stop_at: float | None = None
        self._ticked = clock()
        self._store_problem = ""
        self._closed = False
        self._name = f"{socket.gethostname()[:64]}-{os.getpid()}"
        self._keys = keys
        self._door = Door(clock)
        self._sockets = Sockets(options, Guard(keys, self._refused) if keys else None)
        self._store: StateStore | None = None
        self._fetcher: Fetcher | None = None
        self._keeper: VoiceKeeper | None = None
        self._health: metrics.HealthServer | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings, post = self._settings, self._reactor.post
        self._store = store = open_store(settings, self._name, self._store_events())
        self._clients = self._sockets.router(settings.clients, Domain.CLIENTS)
        self._workers = self._sockets.router(settings.workers, Domain.WORKERS)
        self._results = results = self._sockets.pull(settings.results, Domain.RESULTS)
        self.endpoints = Endpoints(self._clients.endpoint, self._workers.endpoint, results.endpoint)
        transports: dict[Domain, Router | Link] = {
            Domain.CLIENTS: self._clients,
            Domain.WORKERS: self._workers,
            Domain.RESULTS: results,
        }
        self._entrances = open_entrances(self._sockets, transports, self._clock)
        if settings.metrics_port is not None:
            self._health = metrics.HealthServer(settings.metrics_port, self.health)
        self._core = core = Core(
            settings, name=self._name, store=store.name, durable=store.durable, now=self._clock(), who=self._who
        )
        self._fetcher = fetcher = Fetcher(
            store, lambda request_id, found: post(lambda: self._fetched(request_id, found))
        )
        self._keeper = keeper = open_voices(
            settings, lambda number, answer: post(lambda: self._voices_answered(number, answer))
        )
        self._executor = Executor(core, self._clients, self._workers, store, self._clock, fetcher.fetch, keeper.ask)
        self._listen(results)

    def _refused(self, refusal: Refusal) -> None:
        self._reactor.post(lambda: self._door.refused(refusal))

    def _who(self, client: bytes) -> bytes:
        """Connections that have proved the same key are one client."""
        user = self._clients.user(client)
        return KEYED + user.encode() if user else b"id " + client

    def _expel(self) -> None:
        """Ends the connections of removed keys: what they had asked for or were working on goes as if they had left."""
        for router, channel in ((self._clients, Channel.CLIENTS), (self._workers, Channel.WORKERS)):
            expelled = router.expel()
            self._door.expelled(channel.value, expelled)
            for guest in expelled:
                self._executor.run(self._core.gone(channel, guest.peer, self._clock()))
        self._door.expelled(Domain.RESULTS.value, self._results.expel())

    def _listen(self, results: Link) -> None:
        core, run, clock = self._core, self._executor.run, self._clock
        self._reactor.add(self._clients, lambda peer, frames: run(core.client_message(peer, frames, clock())))
        self._reactor.add(self._workers, lambda peer, frames: run(core.worker_message(peer, frames, clock())))
        self._reactor.add(results, lambda _, frames: run(core.result(frames, clock())))
        for entrance in self._entrances:
            self._reactor.add(entrance.events, entrance.happened)
        self._reactor.every(TICK_S, self._tick)
        self._reactor.every(REPORT_S, self._report)
        watchdog = watchdog_interval()
        if watchdog:
            self._reactor.every(watchdog, self._watch)

    # ---- from any thread -----------------------------------------------------------------------------------------

    @property
    def metrics_port(self) -> int | None:
        """Where /metrics and /healthz are, if they are."""
        return self._health.port if self._health else None

    def terminate(self) -> None:
        """Ends at once if the store keeps the requests: clients go on with them at the next broker. Else finishes what
        is in flight and ends; asked again, ends at once. May be called from signal handlers."""
        if not self._closed:
            self._reactor.post(self._terminate)

    def health(self) -> tuple[bool, str]:
        """Whether the broker can take requests, and a sentence about it."""
        behind = self._clock() - self._ticked
        if behind > STUCK_S:
            return False, f"the loop has not turned for {behind:.0f} s"
        if self._stop_at is not None:
            return False, "shutting down"
        trouble = self._store.trouble() if self._store else ""
        if self._store_problem:
            return False, f"requests cannot be stored, streams go on: {trouble or self._store_problem}"
        return True, f"serving, though {trouble}" if trouble else "serving"

    # ---- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until told to end. Raises what went wrong if a defect ends it."""
        self._log.info("ready", **self.endpoints._asdict(), metrics_port=self.metrics_port)
        if not self._keys:
            self._door.warn_if_open(self.endpoints)
        self._door.warn_if_few(self._entrances, self._sockets.options.connections)
        notify("READY=1")
        self._reactor.run()
        if self._crash:
            raise InternalError("the state store's thread has died") from self._crash
        self._log.info("broker ended")

    def close(self) -> None:
        """Closes sockets, store and metrics; messages already sent have the bounded linger time to leave."""
        self._closed = True
        self._sockets.close()
        if self._fetcher:
            self._fetcher.close(STORE_CLOSE_S)
        if self._keeper:
            self._keeper.close(STORE_CLOSE_S)
        if self._store:
            self._store.close(STORE_CLOSE_S)
        if self._health:
            self._health.close()
        self._reactor.close()

    def _terminate(self) -> None:
        load = self._core.load()
        if self._store and self._store.durable and not self._store_problem:
            self._log.info("requests are left to the next broker", requests=load.waiting + load.active)
            notify("STOPPING=1")
            self._reactor.stop()
        elif self._stop_at is None:
            self._log.info("shutting down", requests=load.waiting + load.active)
            notify("STOPPING=1")
            self._core.stop_admitting()
            self._stop_at = self._clock() + DRAIN_S
        else:
            self._stop_at = self._clock()
        self._finish_if_due()

    def _finish_if_due(self) -> None:
        if self._stop_at is None:
            return
        now = self._clock()
        load = self._core.load()
        if not load.waiting and not load.active:
            self._stop_at = min(self._stop_at, now + ACKNOWLEDGE_S)
        if self._core.idle or now >= self._stop_at:
            self._executor.run(self._core.abandon(now))
            self._reactor.stop()

    # ---- timers --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticked = self._clock()
        self._expel()
        self._executor.run(self._core.tick(self._ticked))
        for router, channel in ((self._clients, Channel.CLIENTS), (self._workers, Channel.WORKERS)):
            for peer in router.peers - self._core.known_peers(channel):
                router.forget(peer)
        self._finish_if_due()

    def _watch(self) -> None:
        notify("WATCHDOG=1")

    def _report(self) -> None:
        if self._store:
            self._store.renew()
        for entrance in self._entrances:
            self._door.crowded(entrance)
        load = self._core.load()
        metrics.queue_length.labels(SERVICE).set(load.waiting)
        metrics.active_requests.labels(SERVICE).set(load.active)
        metrics.memory_usage.labels("rss").set(metrics.resident_bytes())
        metrics.memory_usage.labels("held_frames").set(load.held_bytes)
        for stage, count in load.workers.items():
            metrics.workers_connected.labels(stage).set(count)
        workers = ", ".join(f"{count} {stage}" for stage, count in load.workers.items())
        state = "STOPPING, " if self._stop_at is not None else ""
        notify(f"STATUS={state}{load.active} active, {load.waiting} waiting; workers: {workers}")

    # ---- the stores ----------------------------------------------------------------------------------------------

    def _store_events(self) -> StoreEvents:
        post = self._reactor.post
        return StoreEvents(
            stored=lambda request_id, error: post(lambda: self._stored(request_id, error)),
            changed=lambda problem: post(lambda: self._store_changed(problem)),
            lost=lambda request_id: post(lambda: self._lost(request_id)),
            crashed=lambda error: post(lambda: self._store_crashed(error)),
        )

    def _voices_answered(self, number: int, answer: Answer) -> None:
        self._executor.run(self._core.voices_answered(number, answer, self._clock()))

    def _stored(self, request_id: str, error: LightTTSError | None) -> None:
        self._executor.run(self._core.stored(request_id, error, self._clock()))

    def _fetched(self, request_id: str, found: Found) -> None:
        self._executor.run(self._core.fetched(request_id, found, self._clock()))

    def _store_changed(self, problem: str) -> None:
        self._store_problem = problem
        if problem:
            self._log.error("state store fails, new requests are refused", problem=problem)
        else:
            self._log.info("state store works again")

    def _lost(self, request_id: str) -> None:
        self._log.warning("another broker has claimed a request", request_id=request_id)
        self._executor.run(self._core.claimed(request_id, self._clock()))

    def _store_crashed(self, error: BaseException) -> None:
        self._crash = error
        self._reactor.stop()
