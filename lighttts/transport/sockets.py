"""Socket factory: the only place where a ZeroMQ socket is made, with the options that keep messages from being lost.

ROUTER sockets are MANDATORY (an unknown or full peer is an error, never a silent drop), connecting sockets queue only
to live connections (IMMEDIATE), LINGER is bounded, ZMTP heartbeats find dead peers, frame sizes are limited, and an ipc
path is locked before it is bound because a second bind would steal it in silence. What is bound for a network needs
CURVE (see `security`), and an ipc socket never has wider permissions than configured.
"""

from __future__ import annotations

import fcntl
import os
import socket as posix
from dataclasses import dataclass
from pathlib import Path

import zmq

from lighttts.errors import ConfigError
from lighttts.transport.endpoints import is_loopback
from lighttts.transport.wire import MAX_FRAME_BYTES

IPC_PATH_MAX = 107
_BACKLOG = 1024


@dataclass(frozen=True)
class SocketOptions:
    """Options every socket gets; times in milliseconds, high-water mark in messages a peer, `ipc_mode` a file mode.

    `handshake_ms`: a connection that is not agreed on by then is closed, and tried again by the one who connects.
    `connections`: how many a broker's tcp socket holds at most.
    `allow_plain`: a tcp address that other machines reach may be bound without CURVE.
    """

    high_water_mark: int = 1000
    linger_ms: int = 1000
    heartbeat_ms: int = 1000
    heartbeat_timeout_ms: int = 3000
    handshake_ms: int = 3000
    connections: int = 4096
    ipc_mode: int = 0o600
    allow_plain: bool = False


class IpcLock:
    """Exclusive lock on an ipc endpoint's path, held while the endpoint is bound."""

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self._fd = self._open()
            # Another process may have removed the file, on releasing it, before we locked it: then we hold nothing.
            if _same_file(self._fd, self._lock_path):
                return
            os.close(self._fd)

    @property
    def _lock_path(self) -> Path:
        return Path(f"{self._path}.lock")

    def _open(self) -> int:
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            text = f"cannot use ipc path {self._path}: {error.strerror}; choose a folder that exists"
            raise ConfigError(text) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            text = f"ipc path {self._path} is in use by another process; stop it or configure another path"
            raise ConfigError(text) from error
        return fd

    def release(self) -> None:
        """Removes the socket and lock files and gives the lock back."""
        self._path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def make_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, options: SocketOptions) -> zmq.Socket[bytes]:
    """An unconnected socket of `kind` with LightTTS' options set."""
    socket = context.socket(kind)
    socket.linger = options.linger_ms
    socket.set_hwm(options.high_water_mark)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, options.heartbeat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, options.heartbeat_timeout_ms)
    socket.setsockopt(zmq.HEARTBEAT_TTL, options.heartbeat_timeout_ms)
    socket.setsockopt(zmq.HANDSHAKE_IVL, options.handshake_ms)
    # The system would wait ever longer for an answer to a connection attempt that was lost in a crowd.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, options.handshake_ms)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def bind(socket: zmq.Socket[bytes], endpoint: str, options: SocketOptions) -> tuple[str, IpcLock | None]:
    """Binds `socket`; returns the endpoint with a wildcard port resolved, and the lock of an ipc path.

    Raises `ConfigError` when the endpoint is in use, malformed or not permitted, or reached by other machines without
    CURVE, unless `options` allow that.
    """
    path = ipc_path(endpoint)
    open_to_all = endpoint.startswith("tcp://") and not is_loopback(endpoint) and not socket.curve_server
    if open_to_all and not options.allow_plain:
        raise ConfigError(
            f"{endpoint} can be reached by other machines, and anybody there could use it: make keys with "
            "`lighttts-cli keys create` and set security.keys, or set security.allow_plain on a network you trust"
        )
    lock = IpcLock(path) if path else None
    try:
        if path:
            socket.setsockopt(zmq.USE_FD, _listen(path, options.ipc_mode))
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        if lock:
            lock.release()
        raise ConfigError(
            f"cannot listen on {endpoint}: {error.strerror}; stop what uses it or configure another address"
        ) from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT), lock


def _listen(path: Path, mode: int) -> int:
    """A descriptor that listens at `path`, whose permissions were never wider than `mode`, whatever the umask.

    libzmq's own bind follows the umask, so that everybody could connect until the file's mode is changed. Linux takes
    the permissions of the file from those of the socket.
    """
    path.unlink(missing_ok=True)
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC) as listener:
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(_BACKLOG)
        return listener.detach()


def connect(socket: zmq.Socket[bytes], endpoint: str, identity: bytes = b"") -> None:
    """Connects `socket` under `identity` (must be new for every boot). Raises `ConfigError` on a malformed endpoint."""
    socket.setsockopt(zmq.IMMEDIATE, 1)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    ipc_path(endpoint)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"{endpoint!r} is not an address: use tcp://host:port or ipc:///path") from error


def ipc_path(endpoint: str) -> Path | None:
    """The path of an ipc endpoint, None for others. Raises `ConfigError` when it is too long for the kernel."""
    if not endpoint.startswith("ipc://"):
        return None
    path = endpoint.removeprefix("ipc://")
    if path.startswith("@"):
        raise ConfigError(f"ipc path {path!r} has no permissions, anybody could use it: choose a path of a file")
    if not path or len(os.fsencode(path)) > IPC_PATH_MAX:
        raise ConfigError(f"ipc path {path!r} must have 1 to {IPC_PATH_MAX} bytes: choose a shorter one")
    return Path(path)
