"""Giving memory back to the system that the C library keeps for later."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); other C libraries have none and keep little."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


_TRIM = _find_trim()


def give_back_heap() -> None:
    """Returns free heap pages to the system; for idle moments, it takes milliseconds."""
    if _TRIM:
        _TRIM(0)
