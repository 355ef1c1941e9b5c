"""A daemon that loads for ever: it says so into the pipe STORY, and is deaf to SIGTERM meanwhile."""

from __future__ import annotations

import os
import signal
import threading


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(os.environ["STORY"], "w") as story:
        story.write("loading\n")
    threading.Event().wait()
    return 0
