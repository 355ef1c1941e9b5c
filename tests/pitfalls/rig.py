"""What these tests share: workers on real sockets that do only what a test tells them, and daemons as processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import zmq

from lighttts.transport import wire
from lighttts.transport.transport import Link, Router, Sockets
from tests.broker.harness import SAMPLE_RATE
from tests.broker.peers import PATIENCE_MS, Peer

ROOT = Path(__file__).parents[2]
PATIENCE = PATIENCE_MS / 1000


class Endpoints(Protocol):
    """Where workers reach a broker."""

    @property
    def workers(self) -> str: ...

    @property
    def results(self) -> str: ...


def receive(transport: Router | Link) -> tuple[bytes, list[bytes]]:
    """The next message of a socket, waiting for it."""
    assert transport.socket.poll(PATIENCE_MS, zmq.POLLIN), "no message came"
    return next(iter(transport.receive(1)))


def connected(link: Link) -> Link:
    """`link`, once it has a connection."""
    assert link.socket.poll(PATIENCE_MS, zmq.POLLOUT), "no connection came"
    return link


class Hand(Peer):
    """A worker that registers, grants its credit, and then does what it is told."""

    def __init__(self, sockets: Sockets, broker: Endpoints, stage: str, epoch: int, credit: int = 100) -> None:
        super().__init__(sockets, broker.workers, f"{stage}-{epoch}".encode())
        self.epoch = epoch
        self.results = connected(sockets.push(broker.results))
        self.say(wire.Register(f"{stage}-{epoch}", epoch, stage, "", "", SAMPLE_RATE, ("anna",)))
        self.hear(wire.Registered)
        if credit:
            self.say(wire.Grant(epoch, credit))

    def push(self, *messages: wire.Message) -> None:
        """Sends results."""
        for message in messages:
            self.results.socket.send_multipart(wire.encode(message))

    def encode(self, request_id: str, length: int = 1) -> None:
        """Encodes a request as one sentence of `length` ids."""
        work = self.hear(wire.EncodeWork)
        assert work.request_id == request_id
        self.push(encoded(work, self.epoch, length))

    def token(self, request_id: str, seq: int, *, last: bool = False, attempt: int = 0) -> wire.Tokens:
        """A frame with one token, which is its number."""
        tokens = np.array([seq], np.int32)
        return wire.Tokens(request_id, attempt, self.epoch, seq, 0, last, last, tokens)

    def audio(
        self, request_id: str, seq: int, *, last: bool = False, samples: int = 480, attempt: int = 0
    ) -> wire.Audio:
        """A frame of samples that are all its number."""
        wave = np.full(samples, seq, np.float32)
        return wire.Audio(request_id, attempt, self.epoch, seq, 0, last, seq * samples, 1, wave)


def encoded(work: wire.EncodeWork, epoch: int, length: int) -> wire.Encoded:
    """One sentence of `length` ids, and a voice."""
    none = np.zeros(0, np.int32)
    return wire.Encoded(
        request_id=work.request_id,
        attempt=work.attempt,
        epoch=epoch,
        lengths=(length,),
        voice_key="key",
        text_ids=np.zeros(length, np.int32),
        prompt_text_ids=none,
        llm_prompt_tokens=none,
        voice_tokens=none,
        voice_mel=np.zeros((0, wire.MEL_BINS), np.float32),
        voice_embedding=np.zeros(wire.EMBEDDING_SIZE, np.float32),
    )


class Crew:
    """One worker of each stage, with epochs 1, 2 and 3."""

    def __init__(self, sockets: Sockets, broker: Endpoints) -> None:
        self.encode, self.llm, self.decode = (
            Hand(sockets, broker, stage, epoch) for epoch, stage in enumerate(wire.STAGES, 1)
        )

    def bring_to_decoding(self, request_id: str) -> None:
        """Encodes a request and makes its only token."""
        self.encode.encode(request_id)
        assert self.llm.hear(wire.GenerateWork).request_id == request_id
        self.llm.push(self.llm.token(request_id, 0, last=True))
        assert self.decode.hear(wire.DecodeWork).request_id == request_id
        assert self.decode.hear(wire.Tokens).last


def status(client: Peer) -> wire.Status:
    """What the broker says of itself."""
    client.say(wire.GetStatus(1))
    return client.hear(wire.Status)


def workers(client: Peer) -> list[str]:
    """The names of the workers the broker knows, sorted."""
    return sorted(row.worker for row in status(client).workers)


def credits(client: Peer) -> list[int]:
    """What each worker may be sent, in the order of their registration."""
    return [row.credit for row in status(client).workers]


def wait_for(condition: Callable[[], bool], client: Peer) -> None:
    """Asks the broker for its status, which lets its loop turn, until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never happened"
        status(client)


def wait_until_known(client: Peer, *names: str) -> None:
    """Waits until the broker knows just these workers."""
    wait_for(lambda: workers(client) == sorted(names), client)


# ---- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process, `command` being its arguments; killed at the end, whatever state it is in."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def tell(started: subprocess.Popen[str]) -> None:
    """Writes a line to a process."""
    assert started.stdin
    started.stdin.write("now\n")
    started.stdin.flush()


def told(started: subprocess.Popen[str]) -> str:
    """The next line that a process writes to stderr, without its end."""
    assert started.stderr
    return started.stderr.readline().rstrip("\n")


@contextmanager
def broker_process(*settings: str, limit: str = "") -> Iterator[subprocess.Popen[str]]:
    """A broker daemon that is ready to serve; `limit` is a shell command that sets limits for it."""
    options = [part for setting in ("metrics_port=null", *settings) for part in ("--set", f"broker.{setting}")]
    command = [sys.executable, "-m", "lighttts.broker.main", "--set", "log.format=json", *options]
    if limit:
        command = ["sh", "-c", f'{limit} && exec "$@"', "sh", *command]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert json.loads(told(started))["event"] == "ready"
            yield started
        finally:
            started.kill()
