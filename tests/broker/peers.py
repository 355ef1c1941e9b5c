"""Real peers of a running broker: clients and workers on sockets, each doing only what a test tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import zmq

from lighttts.broker.app import App
from lighttts.config import BrokerConfig
from lighttts.transport import wire
from lighttts.transport.keyfiles import KeyFolder
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from lighttts.transport.wire import Message
from tests.broker.harness import SAMPLE_RATE, audio, encoded, tokens

ANY = "tcp://127.0.0.1:0"
PATIENCE_MS = 30_000
"""After this what a test waits for is taken to be missing."""
EPOCHS = {"encode": 1, "llm": 2, "decode": 3}
UNASKED = (wire.Alive, wire.Welcome, wire.Ping)
M = TypeVar("M", bound=Message)


class RunningApp:
    """A broker whose loop runs in a thread."""

    def __init__(
        self, *, options: SocketOptions | None = None, keys: KeyFolder | None = None, **settings: object
    ) -> None:
        where: dict[str, object] = {"clients": ANY, "workers": ANY, "results": ANY, "metrics_port": None}
        self.app = App(BrokerConfig(**{**where, **settings}), options=options, keys=keys)  # type: ignore[arg-type]
        self.endpoints = self.app.endpoints
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.app.run()
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Waits for the broker to end."""
        self._thread.join(PATIENCE_MS / 1000)
        assert not self._thread.is_alive()

    def __enter__(self) -> RunningApp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self.app.terminate()
            self.app.terminate()
        self.wait()
        self.app.close()


class Peer:
    """A DEALER at the broker."""

    def __init__(self, sockets: Sockets, endpoint: str, identity: bytes = b"") -> None:
        self.link = sockets.dealer(endpoint, identity)
        self.link.socket.poll(PATIENCE_MS, zmq.POLLOUT)

    def say(self, *messages: Message) -> None:
        """Sends messages."""
        for message in messages:
            assert self.link.broadcast(wire.encode(message)) == 1

    def hear(self, cls: type[M]) -> M:
        """The next message, which must be of type `cls`; heartbeat answers and probes are passed over."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            assert self.link.socket.poll(left_ms), f"no {cls.__name__} came"
            message = wire.decode(self.link.socket.recv_multipart())
            if isinstance(message, cls):
                return message
            assert isinstance(message, UNASKED), f"{message} came, not {cls.__name__}"

    def quiet(self) -> bool:
        """Whether nothing but unasked messages waits."""
        return all(isinstance(wire.decode(frames), UNASKED) for _, frames in self.link.receive(1000))


class Worker(Peer):
    """A worker of one stage. It beats only when told."""

    def __init__(self, sockets: Sockets, running: RunningApp, stage: str, credit: int = 100) -> None:
        super().__init__(sockets, running.endpoints.workers, stage.encode())
        self.epoch = EPOCHS[stage]
        self._push = sockets.push(running.endpoints.results)
        self._push.socket.poll(PATIENCE_MS, zmq.POLLOUT)
        self.say(wire.Register(stage, self.epoch, stage, "", "", SAMPLE_RATE, ("anna",)))
        self.hear(wire.Registered)
        self.say(wire.Grant(self.epoch, credit))

    def push(self, *messages: Message) -> None:
        """Sends results."""
        for message in messages:
            self._push.socket.send_multipart(wire.encode(message))


class Crew:
    """One worker of each stage."""

    def __init__(self, sockets: Sockets, running: RunningApp) -> None:
        self.encode, self.llm, self.decode = (Worker(sockets, running, stage) for stage in wire.STAGES)

    def bring_to_decoding(self, request_id: str) -> None:
        """Encodes a request and makes all its tokens."""
        assert self.encode.hear(wire.EncodeWork).request_id == request_id
        self.encode.push(encoded(request_id, self.encode.epoch))
        assert self.llm.hear(wire.GenerateWork).request_id == request_id
        self.llm.push(tokens(request_id, self.llm.epoch, 0, last=True))
        assert self.decode.hear(wire.DecodeWork).request_id == request_id
        assert self.decode.hear(wire.Tokens).last

    def speak(self, request_id: str, frames: int, samples: int = 480) -> list[wire.Audio]:
        """Pushes a request's audio; returns what was pushed."""
        made = [
            audio(request_id, self.decode.epoch, seq, last=seq == frames - 1, samples=samples) for seq in range(frames)
        ]
        self.decode.push(*made)
        return made


def wait_for(condition: Callable[[], bool], client: Peer) -> None:
    """Asks the broker for its status, which lets its loop turn, until `condition` holds."""
    for number in range(10_000):
        if condition():
            return
        client.say(wire.GetStatus(number))
        client.hear(wire.Status)
    raise AssertionError("what was waited for never happened")
