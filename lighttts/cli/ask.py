"""Asking one broker what it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.errors import Unavailable
from lighttts.transport.endpoints import listening

if TYPE_CHECKING:
    from lighttts.transport.wire import Status


def ask_status(address: str, keys: Path | None) -> Status:
    """The status of the broker at `address`. Raises `Unavailable` at once if nothing listens there, `AccessDenied`."""
    from lighttts.client import Client

    if not listening(address):
        raise Unavailable(f"no broker answers at {address}: start one with `lighttts-cli up`")
    with Client(address, keys=keys) as client:
        return client.status()
