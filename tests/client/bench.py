"""A client's core without sockets, its clock, and what comes out of it."""

from __future__ import annotations

from lighttts.client.absence import Absence
from lighttts.client.brokers import Brokers
from lighttts.client.events import Connect, Deliver, Event, Failed, Send
from lighttts.client.session import Session
from lighttts.client.stream import Timeouts
from lighttts.errors import (
    LightTTSError,
)
from lighttts.transport.wire import (
    Accepted,
    Hello,
    Message,
    SpeechRequest,
    Synth,
    Welcome,
    encode,
)
from tests.client.fake_broker import RATE

HELLO = Hello("test", "test/1")
TIMEOUTS = Timeouts(connect=5.0, chunk=60.0)
WELCOME = Welcome("b", "b/1", 20_000, 256)


def synth(voice: str = "heart", *, output: str = "audio", sample_type: str = "f32", deadline_ms: int = 0) -> Synth:
    return Synth("r1", "Hello.", voice, "", 7, 1.0, output, sample_type, deadline_ms, 0, b"")


class Bench:
    """A session, its clock, and what came out of it."""

    def __init__(self, *endpoints: str, connected: bool = True, max_credit: int = 256) -> None:
        self.now = 100.0
        endpoints = endpoints or ("tcp://there:1",)
        brokers = Brokers(endpoints, TIMEOUTS.connect, self.now)
        self.session = Session(brokers, Absence(endpoints), TIMEOUTS, HELLO)
        self.sent: list[Message] = []
        self.connects: list[str] = []
        self.events: dict[str | int, list[Event]] = {}
        if connected:
            self.session.connection.made(self.now)
            self.receive(Welcome("b", "b/1", 20_000, max_credit))
            self.take_sent()

    def receive(self, *messages: Message) -> None:
        for message in messages:
            self.session.received(encode(message), self.now)
        self._collect()

    def open(self, request: SpeechRequest) -> None:
        self.session.open(request, self.now)
        self._collect()

    def streaming(self, request: Synth) -> None:
        self.open(request)
        self.receive(Accepted("r1", RATE))
        self.take_sent()

    def consume(self, count: int = 1) -> None:
        for _ in range(count):
            self.session.consumed("r1", self.now)
        self._collect()

    def pass_time(self, seconds: float) -> None:
        """Lets time pass, calling `tick` whenever the session asked for it."""
        end = self.now + seconds
        while self.session.next_due() <= end:
            self.now = max(self.now, self.session.next_due())
            self.session.tick(self.now)
            self._collect()
        self.now = end

    def take_sent(self) -> list[Message]:
        self._collect()
        taken, self.sent = self.sent, []
        return taken

    def error(self, key: str | int = "r1") -> LightTTSError:
        """The error that ended a request or query."""
        last = self.events[key][-1]
        assert isinstance(last, Failed)
        return last.error

    def _collect(self) -> None:
        for instruction in self.session.take():
            if isinstance(instruction, Send):
                self.sent.append(instruction.message)
            elif isinstance(instruction, Connect):
                self.connects.append(instruction.endpoint)
                self.session.connection.opened()
            else:
                assert isinstance(instruction, Deliver)
                self.events.setdefault(instruction.key, []).append(instruction.event)
