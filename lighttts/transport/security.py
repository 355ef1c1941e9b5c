"""Who may connect: CURVE on tcp sockets, and the gatekeeper that libzmq asks about every key (ZAP, ZeroMQ RFC 27).

Each bound socket is a domain of its own, and a domain admits the keys of one role: a client's key opens the clients'
socket and no other. The gatekeeper listens before the first socket is bound, and a socket without it admits nobody.

pyzmq's `ThreadAuthenticator` is not used: it never looks at its folder again unless told, and an exception ends its
thread for good, after which nobody can connect.
"""

from __future__ import annotations

import enum
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zmq
import zmq.utils.z85 as z85

from lighttts.transport.allowlist import RESCAN_S, AllowList
from lighttts.transport.guests import KEY_PROPERTY
from lighttts.transport.keyfiles import KeyFolder, Role, fingerprint

ZAP_ENDPOINT = "inproc://zeromq.zap.01"


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


class Gatekeeper:
    """Decides in a thread of its own about every CURVE handshake of the context's bound sockets, until `close`.

    Raises `ConfigError` when the lists of allowed keys cannot be read.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guard: Guard) -> None:
        for role in set(ADMITS.values()):
            guard.folder.allowed_names(role)
        self._report = guard.report
        self._lists = {ADMITS[domain]: self._list(guard.folder, domain) for domain in (Domain.CLIENTS, Domain.WORKERS)}
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.set_hwm(0)
        self._socket.bind(ZAP_ENDPOINT)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="gatekeeper", daemon=True)
        self._thread.start()

    def _list(self, folder: KeyFolder, domain: Domain) -> AllowList:
        return AllowList(folder, ADMITS[domain], lambda text: self._report(Refusal(domain.value, text)))

    def standing(self, domain: Domain) -> frozenset[str]:
        """The keys (Z85) whose connections to a domain may stay, the same object until it changes: for any thread."""
        return self._lists[ADMITS[domain]].standing

    def close(self) -> None:
        """Ends the thread; from then on nobody is admitted."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while self._wake not in (ready := dict(poller.poll(round(1000 * RESCAN_S)))):
            if ready:
                self._socket.send_multipart(self.answer(self._socket.recv_multipart()))
            for allowed in self._lists.values():
                allowed.refresh()
        self._socket.close()

    def answer(self, frames: Sequence[bytes]) -> list[bytes]:
        """The reply to a ZAP request: status 200, the key's name and the key, or 300.

        300 (come again later) rather than 400 because libzmq never connects again after 400: a worker that runs already
        would not be helped by a key that is allowed a moment later. After 300 it tries again every `handshake_ms`.
        """
        version, request, domain, address, _identity, mechanism, *credentials = frames
        name, why, public = None, "not CURVE", b""
        if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            public = z85.encode(credentials[0])
            name, why = self._judge(domain, public)
        if name is None:
            door, where = (part.decode("utf-8", "replace") for part in (domain, address))
            self._report(Refusal(door, why, where, fingerprint(public)))
            return [version, request, b"300", b"refused", b"", b""]
        return [version, request, b"200", b"OK", name.encode("ascii"), _property(KEY_PROPERTY, public)]

    def _judge(self, domain: bytes, public: bytes) -> tuple[str | None, str]:
        """The name of who may come in; or None and why not."""
        door = _DOMAINS.get(domain)
        if door is None:
            return None, "unknown domain"
        names = {role: allowed.name_of(public) for role, allowed in self._lists.items()}
        name = names.pop(ADMITS[door])
        if name is not None:
            return name, ""
        elsewhere = next((role.value for role, other in names.items() if other is not None), "")
        return None, f"the key of a {elsewhere}" if elsewhere else "unknown key"


def _property(name: str, value: bytes) -> bytes:
    """A property of a connection as ZMTP writes it; libzmq shows it to who receives a message by that connection."""
    return struct.pack(f">B{len(name)}sI", len(name), name.encode("ascii"), len(value)) + value


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
