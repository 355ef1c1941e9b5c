"""A worker as a process: signals, health server, and an end even when the engine hangs."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.errors import InternalError
from lighttts.logs import get_logger
from lighttts.metrics import HealthServer
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.security import Proof
from lighttts.workers.base import Worker
from lighttts.workers.connector import Address
from lighttts.workers.stage import Boot, Stage


class Service:
    """A worker with its health server. Raises `ConfigError` on an unusable endpoint, key or port."""

    def __init__(
        self,
        stage: Stage,
        boot: Boot,
        config: Config,
        metrics_port: int | None,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = stage.name
        self._log = get_logger(stage=stage.name, worker=boot.worker)
        keys = config.security.keys
        proof = Proof(KeyFolder(keys), Role.WORKER) if keys else None
        brokers = [Address(*endpoints) for endpoints in config.worker_brokers]
        self._worker = Worker(stage, boot, brokers, proof=proof, observe=observe)
        self._health = None if metrics_port is None else HealthServer(metrics_port, self._worker.health)
        port = self._health.port if self._health else None
        self._log.info("worker started", model=boot.model, capacity=stage.capacity, metrics_port=port)
        self.terminate = self._worker.terminate
        self.stop = self._worker.stop

    def run(self) -> int:
        """Serves until it is told to end; returns the exit code."""
        try:
            code = self._worker.run()
        finally:
            if self._health:
                self._health.close()
        if self._worker.hung:
            self._log.error("the engine does not end, the process ends without it")
            sys.stderr.flush()
            # An orderly exit would wait for, or crash with, the thread that is still in native code.
            os._exit(code or InternalError.exit_code)
        return code


def serve(*services: Service) -> int:
    """Runs workers side by side, the first in the main thread, until a signal ends them or one of them has ended.

    SIGTERM drains, a second one or SIGINT ends at once. Returns the worst exit code.
    """
    signal.signal(signal.SIGTERM, lambda *_: [service.terminate() for service in services])
    signal.signal(signal.SIGINT, lambda *_: [service.stop() for service in services])
    codes: list[int] = []

    def run(service: Service) -> None:
        code = InternalError.exit_code
        try:
            code = service.run()
        finally:
            codes.append(code)
            for other in services:
                if other is not service:
                    other.terminate()

    # Models and torch stay: looking through all of it for garbage would hold up every stream for 150 ms.
    gc.freeze()
    first, *others = services
    threads = [threading.Thread(target=run, args=(service,), name=service.name) for service in others]
    for thread in threads:
        thread.start()
    run(first)
    for thread in threads:
        thread.join()
    return max(codes)


def run_worker(name: str, description: str, *services: Callable[[Config], Service]) -> NoReturn:
    """The whole of a worker's console script: what `services` make of the configuration is run side by side."""
    code = run_daemon(name, description, lambda config: serve(*(service(config) for service in services)))
    sys.stdout.flush()
    sys.stderr.flush()
    # All is closed: the interpreter would look through the whole of torch for garbage before it ends, for a second.
    os._exit(code)
