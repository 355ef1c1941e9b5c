"""A daemon that does nothing until SIGTERM, in place of a worker."""

from __future__ import annotations

import signal
import threading


def main() -> int:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    return 0
