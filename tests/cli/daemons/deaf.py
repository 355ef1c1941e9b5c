"""A daemon that SIGTERM does not end."""

from __future__ import annotations

import signal
import threading


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait()
    return 0
