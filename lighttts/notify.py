"""systemd's notification protocol (sd_notify(3)): readiness, status and watchdog of a daemon."""

from __future__ import annotations

import atexit
import functools
import os
import socket


def notify(*states: str) -> bool:
    """Sends states such as ``READY=1`` or ``STATUS=3 active`` to the service manager; never blocks.

    False if there is no manager, or it does not take them now: its queue is full, or it is gone.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        _channel().sendto("\n".join(states).encode(), address)
    except OSError:
        return False
    return True


@functools.cache
def _channel() -> socket.socket:
    """Made once: a watchdog must be told also while no descriptor is left."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    channel.setblocking(False)
    atexit.register(channel.close)
    return channel


def watchdog_interval() -> float | None:
    """Seconds between ``WATCHDOG=1`` (half of what the manager allows), None if no watchdog watches this process."""
    allowed = os.environ.get("WATCHDOG_USEC")
    watched = os.environ.get("WATCHDOG_PID")
    if not allowed or (watched and int(watched) != os.getpid()):
        return None
    return int(allowed) / 2e6
