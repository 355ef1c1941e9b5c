"""Signals that end the program: raised as an exception, so that everything is left in order on the way out."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """SIGTERM or SIGHUP has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_stop_signals() -> None:
    """From now on SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises `KeyboardInterrupt`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)
