"""A worker as a process: signals, health server, and an end even when the engine hangs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from lighttts.config import Config
from lighttts.errors import InternalError
from lighttts.logs import get_logger
from lighttts.metrics import HealthServer
from lighttts.transport.keyfiles import KeyFolder, Role
from lighttts.transport.security import Proof
from lighttts.workers.base import Worker
from lighttts.workers.connector import Address
from lighttts.workers.stage import Boot, Stage


def serve(
    stage: Stage, boot: Boot, config: Config, metrics_port: int | None, observe: Callable[[], None] = lambda: None
) -> int:
    """Runs the worker in the main thread until a signal ends it; returns the exit code.

    SIGTERM drains, a second one or SIGINT ends at once. Raises `ConfigError` on an unusable endpoint, key or
    port.
    """
    log = get_logger(stage=stage.name, worker=boot.worker)
    keys = config.security.keys
    proof = Proof(KeyFolder(keys), Role.WORKER) if keys else None
    brokers = [Address(*endpoints) for endpoints in config.worker_brokers]
    worker = Worker(stage, boot, brokers, proof=proof, observe=observe)
    signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    signal.signal(signal.SIGINT, lambda *_: worker.stop())
    health = None if metrics_port is None else HealthServer(metrics_port, worker.health)
    log.info("worker started", model=boot.model, capacity=stage.capacity, metrics_port=health.port if health else None)
    try:
        code = worker.run()
    finally:
        if health:
            health.close()
    if worker.hung:
        log.error("the engine does not end, the process ends without it")
        sys.stderr.flush()
        # An orderly exit would wait for, or crash with, the thread that is still in native code.
        os._exit(code or InternalError.exit_code)
    return code
