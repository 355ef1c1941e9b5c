"""Who may connect: CURVE on tcp sockets, and the gatekeeper that libzmq asks about every key (ZAP, ZeroMQ RFC 27).

Each bound socket is a domain of its own, and a domain admits the keys of one role: a client's key opens the clients'
socket and no other. The gatekeeper listens before the first socket is bound, and a socket without it admits nobody.

pyzmq's `ThreadAuthenticator` is not used: it never looks at its folder again unless told, and an exception ends its
thread for good, after which nobody can connect.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.utils.z85 as z85

from lighttts.errors import ConfigError
from lighttts.transport.keyfiles import KeyFolder, Role, fingerprint

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
RESCAN_S = 1.0
"""A list of allowed keys is read again after this, even if its folder looks unchanged."""
_RACY_NS = 100_000_000
"""A folder changed so short a time ago may change again without a new time stamp."""


class Domain(enum.Enum):
    """The broker's sockets, each with a door of its own."""

    CLIENTS = "clients"
    WORKERS = "workers"
    RESULTS = "results"


ADMITS = {Domain.CLIENTS: Role.CLIENT, Domain.WORKERS: Role.WORKER, Domain.RESULTS: Role.WORKER}
_DOMAINS = {domain.value.encode(): domain for domain in Domain}


class Refusal(NamedTuple):
    """A connection that was not let in, or (without an address) a key file that cannot be used."""

    domain: str
    why: str
    address: str = ""
    key: str = ""


Report = Callable[[Refusal], None]
"""Is told of refusals, in the gatekeeper's thread."""


@dataclass(frozen=True)
class Guard:
    """Binds tcp sockets with the broker's key in `folder` and admits those that its lists allow."""

    folder: KeyFolder
    report: Report


@dataclass(frozen=True)
class Proof:
    """Connects tcp sockets with the key of `role` in `folder`, only to the broker whose public key is there."""

    folder: KeyFolder
    role: Role


class AllowList:
    """The public keys that a domain admits, read again when they change. For one thread."""

    def __init__(self, guard: Guard, domain: Domain) -> None:
        self._folder = guard.folder
        self._role = ADMITS[domain]
        self._domain = domain
        self._report = guard.report
        self._names: dict[bytes, str] = {}
        self._stamp = -1
        self._stale_at = 0.0

    def name_of(self, public: bytes) -> str | None:
        """The name under which the key (Z85) is allowed, None if it is not."""
        stamp = _changed_at(self._folder.allowed_folder(self._role))
        if stamp != self._stamp or time.monotonic() >= self._stale_at:
            self._load()
            self._stamp = stamp
            racy = time.time_ns() - stamp < _RACY_NS
            self._stale_at = time.monotonic() + (0.0 if racy else RESCAN_S)
        return self._names.get(public)

    def _problem(self, error: ConfigError) -> None:
        self._report(Refusal(self._domain.value, error.text))

    def _load(self) -> None:
        """Reads the list. What cannot be read admits nobody, and is told."""
        self._names = {}
        try:
            names = self._folder.allowed_names(self._role)
        except ConfigError as error:
            self._problem(error)
            return
        for name in names:
            try:
                self._names[self._folder.allowed_key(self._role, name)] = name
            except ConfigError as error:
                self._problem(error)


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


class Gatekeeper:
    """Decides in a thread of its own about every CURVE handshake of the context's bound sockets, until `close`.

    Raises `ConfigError` when the lists of allowed keys cannot be read.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guard: Guard) -> None:
        for role in set(ADMITS.values()):
            guard.folder.allowed_names(role)
        self._report = guard.report
        self._lists = {domain: AllowList(guard, domain) for domain in Domain}
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.set_hwm(0)
        self._socket.bind(ZAP_ENDPOINT)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="gatekeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; from then on nobody is admitted."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while self._wake not in dict(poller.poll()):
            self._socket.send_multipart(self.answer(self._socket.recv_multipart()))
        self._socket.close()

    def answer(self, frames: Sequence[bytes]) -> list[bytes]:
        """The reply to a ZAP request: status 200 and the key's name, or 300.

        300 (come again later) rather than 400 because libzmq never connects again after 400: a worker that runs already
        would not be helped by a key that is allowed a moment later. After 300 it tries again every `handshake_ms`.
        """
        version, request, domain, address, _identity, mechanism, *credentials = frames
        name, why, key = None, "not CURVE", ""
        if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            public = z85.encode(credentials[0])
            key = fingerprint(public)
            name, why = self._judge(domain, public)
        if name is None:
            self._report(Refusal(domain.decode("utf-8", "replace"), why, address.decode("utf-8", "replace"), key))
            return [version, request, b"300", b"refused", b"", b""]
        return [version, request, b"200", b"OK", name.encode("ascii"), b""]

    def _judge(self, domain: bytes, public: bytes) -> tuple[str | None, str]:
        """The name of who may come in; or None and why not."""
        door = _DOMAINS.get(domain)
        if door is None:
            return None, "unknown domain"
        name = self._lists[door].name_of(public)
        if name is not None:
            return name, ""
        elsewhere = {ADMITS[other].value for other, keys in self._lists.items() if keys.name_of(public) is not None}
        return None, f"the key of a {elsewhere.pop()}" if elsewhere else "unknown key"


def guard_socket(socket: zmq.Socket[bytes], folder: KeyFolder, domain: Domain) -> None:
    """Makes a socket that is about to be bound a CURVE server. Raises `ConfigError` without a usable key."""
    socket.curve_secretkey = folder.pair(Role.BROKER).secret
    socket.curve_server = True
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.value.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def prove_socket(socket: zmq.Socket[bytes], proof: Proof) -> None:
    """Makes a socket that is about to connect prove its key, and the other side its own. Raises `ConfigError`."""
    pair = proof.folder.pair(proof.role)
    socket.curve_serverkey = proof.folder.broker_key()
    socket.curve_publickey = pair.public
    socket.curve_secretkey = pair.secret
