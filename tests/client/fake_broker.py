"""A broker of real sockets that answers as the protocol says, unless a test scripts it otherwise."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from lighttts.transport.reactor import Reactor
from lighttts.transport.transport import Delivery, Sockets
from lighttts.transport.wire import (
    STAGES,
    VERSION,
    Accepted,
    AddVoice,
    Audio,
    Cancel,
    Convert,
    Credit,
    End,
    EndAck,
    Error,
    Finish,
    GetStatus,
    Hello,
    ListVoices,
    Mel,
    Message,
    Resume,
    SpeechRequest,
    Status,
    Synth,
    Tokens,
    VoiceAction,
    VoiceDone,
    VoiceFailed,
    VoiceList,
    VoiceRow,
    Voices,
    Welcome,
    WorkerStatus,
    decode,
    encode,
    version_of,
)

RATE = 24000
M = TypeVar("M", bound=Message)
Handler = Callable[["FakeBroker", bytes, Message], None]
DEADLINE = 10.0


def chunk_of(synth: SpeechRequest, number: int) -> np.ndarray:
    """The `number`th chunk that the fake speaks for a request: a function of seed and number."""
    rng = np.random.default_rng([synth.seed % 2**32, number])
    if synth.output == "mel":
        return rng.standard_normal((50, 80)).astype(np.float16 if number % 2 else np.float32)
    if synth.output == "tokens":
        return rng.integers(0, 6561, 25, dtype=np.int32)
    wave = rng.uniform(-0.5, 0.5, 480)
    return (wave * 32767).astype(np.int16) if synth.sample_type == "s16" else wave.astype(np.float32)


def frame_of(synth: SpeechRequest, number: int, *, seq: int | None = None, first: int | None = None) -> Message:
    """The message of that chunk; `seq` and `first` (sample or mel frame) can be made wrong."""
    data = chunk_of(synth, number)
    seq = number if seq is None else seq
    common = {"request_id": synth.request_id, "attempt": 0, "epoch": 1, "seq": seq, "sentence": 0, "last": False}
    if synth.output == "tokens":
        return Tokens(**common, final=False, tokens=data)
    start = number * len(data) if first is None else first
    if synth.output == "mel":
        return Mel(**common, first_frame=start, tokens=25 * (number + 1), mel=data)
    return Audio(**common, first_sample=start, tokens=25 * (number + 1), samples=data)


@dataclass
class Served:
    """A request that the fake streams as credit allows."""

    peer: bytes
    synth: SpeechRequest
    credit: int
    sent: int = 0


class FakeBroker:
    """Serves `chunks` chunks a request in a thread of its own. `script` replaces the answer to a type of message.

    `ready`: says that it has workers; `version`: the newest that it understands.
    """

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:0",
        *,
        chunks: int = 4,
        voices: tuple[str, ...] = ("heart", "june"),
        max_credit: int = 256,
        ready: bool = True,
        version: int = VERSION,
        stages: tuple[str, ...] = STAGES,
        script: dict[type[Message], Handler] | None = None,
    ) -> None:
        self.chunks = chunks
        self.voices = voices
        self.stages = stages
        self.max_credit = max_credit
        self.ready = ready
        self.version = version
        self.received: list[Message] = []
        """All that has come: a client that has its answer finds here what it asked."""
        self._answered = 0
        self.serving: dict[str, Served] = {}
        self.kept: dict[str, AddVoice] = {}
        """Registered voices, all of one owner."""
        self.peers: dict[str, bytes] = {}
        """Who has asked for what."""
        self._handlers: dict[type[Message], Handler] = {**HANDLERS, **(script or {})}
        self._heard = threading.Condition()
        self._sockets = Sockets()
        self._router = self._sockets.router(endpoint)
        self.endpoint = self._router.endpoint
        self._reactor = Reactor()
        self._reactor.add(self._router, self._receive)
        self._thread = threading.Thread(target=self._reactor.run, name="fake-broker", daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes everything. Idempotent."""
        if self._thread.is_alive():
            self._reactor.stop()
            self._thread.join(DEADLINE)
            self._sockets.close()
            self._reactor.close()

    def wait_for(self, kind: type[M], count: int = 1) -> M:
        """The `count`th message of a type, waiting until it is answered."""

        def answered() -> list[M]:
            return [message for message in self.received[: self._answered] if isinstance(message, kind)]

        with self._heard:
            assert self._heard.wait_for(lambda: len(answered()) >= count, DEADLINE), f"no {kind.__name__} came"
            return answered()[count - 1]

    def all(self, kind: type[M]) -> list[M]:
        """The messages of a type so far."""
        return [message for message in self.received if isinstance(message, kind)]

    def do(self, call: Callable[[], None]) -> None:
        """Runs `call` in the broker's thread."""
        self._reactor.post(call)

    def send(self, peer: bytes, message: Message) -> None:
        """Sends to one client, if it is still there."""
        self.send_raw(peer, encode(message))

    def send_raw(self, peer: bytes, frames: list[bytes]) -> None:
        """Sends frames as they are."""
        assert self._router.send(peer, frames) is not Delivery.FULL

    def pump(self, served: Served) -> None:
        """Sends what credit allows, and `End` after the last chunk."""
        while served.credit and served.sent < self.chunks:
            self.send(served.peer, frame_of(served.synth, served.sent))
            served.sent += 1
            served.credit -= 1
        if served.sent == self.chunks:
            served.sent += 1
            self.send(served.peer, End(served.synth.request_id, self.chunks, 25 * self.chunks, 1))

    def _receive(self, peer: bytes, frames: list[bytes]) -> None:
        if version_of(frames) > self.version:
            refusal = Error("", "protocol", f"version {version_of(frames)} is not supported", "", False, 0)
            self.send_raw(peer, encode(refusal, self.version))
            return
        message = decode(frames)
        if isinstance(message, SpeechRequest):
            self.peers[message.request_id] = peer
        self.received.append(message)
        handler = self._handlers.get(type(message))
        if handler:
            handler(self, peer, message)
        with self._heard:
            self._answered = len(self.received)
            self._heard.notify_all()


def welcome(broker: FakeBroker, peer: bytes, message: Hello) -> None:
    broker.send(peer, Welcome("fake", "fake/1", 20_000, broker.max_credit, broker.ready))


def serve(broker: FakeBroker, peer: bytes, message: SpeechRequest) -> None:
    broker.send(peer, Accepted(message.request_id, RATE))
    broker.serving[message.request_id] = served = Served(peer, message, message.credit)
    if not (isinstance(message, Synth) and message.pieces):
        broker.pump(served)


def _finished(broker: FakeBroker, peer: bytes, message: Finish) -> None:
    served = broker.serving.get(message.request_id)
    if served:
        broker.pump(served)


def forgotten(broker: FakeBroker, peer: bytes, message: Resume) -> None:
    """Knows nothing of a request that is to go on."""
    broker.send(peer, Error(message.request_id, "unknown_request", "send it again", "", True, 0))


def going_on_from(first: FakeBroker) -> Handler:
    """A handler that goes on with what `first` was asked for."""

    def handler(broker: FakeBroker, peer: bytes, message: Resume) -> None:
        synth = next(synth for synth in first.all(Synth) if synth.request_id == message.request_id)
        if not message.accepted:
            broker.send(peer, Accepted(message.request_id, RATE))
        broker.serving[message.request_id] = served = Served(peer, synth, message.credit, message.seq)
        broker.pump(served)

    return handler


def accept_only(broker: FakeBroker, peer: bytes, message: Synth) -> None:
    broker.send(peer, Accepted(message.request_id, RATE))


def begin_only(broker: FakeBroker, peer: bytes, message: Synth) -> None:
    """Accepts a request, sends its first two chunks, and no more."""
    broker.send(peer, Accepted(message.request_id, RATE))
    for number in range(2):
        broker.send(peer, frame_of(message, number))


def refuse(code: str, text: str, **more: object) -> Handler:
    """A handler that ends every request with an error."""

    def handler(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        row = {"field": "", "retryable": False, "retry_after_ms": 0, **more}
        broker.send(peer, Error(message.request_id, code, text, **row))

    return handler


def silent(broker: FakeBroker, peer: bytes, message: Message) -> None:
    """Takes the message and says nothing."""


def _more_credit(broker: FakeBroker, peer: bytes, message: Credit) -> None:
    served = broker.serving.get(message.request_id)
    if served:
        served.credit += message.frames
        broker.pump(served)


def _cancelled(broker: FakeBroker, peer: bytes, message: Cancel) -> None:
    broker.serving.pop(message.request_id, None)
    broker.send(peer, Error(message.request_id, "cancelled", "cancelled by the client", "", False, 0))


def _voices(broker: FakeBroker, peer: bytes, message: ListVoices) -> None:
    broker.send(peer, Voices(message.query_id, RATE, (*broker.voices, *broker.kept)))


def _add(broker: FakeBroker, peer: bytes, message: AddVoice) -> None:
    """Refuses what is no RIFF file, and a name that is taken."""
    if not message.prompt.startswith(b"RIFF"):
        broker.send(peer, VoiceFailed(message.query_id, "invalid_input", "no audio", "prompt", False, 0))
    elif message.name in broker.kept and not message.replace:
        broker.send(peer, VoiceFailed(message.query_id, "voice_exists", "it is taken", "name", False, 0))
    else:
        broker.kept[message.name] = message
        broker.send(peer, _done(message.query_id, message))


def _act(broker: FakeBroker, peer: bytes, message: VoiceAction) -> None:
    voice = broker.kept.get(message.name)
    if message.action == "list":
        broker.send(peer, VoiceList(message.query_id, tuple(map(_row, broker.kept.values()))))
    elif voice is None:
        broker.send(peer, VoiceFailed(message.query_id, "unknown_voice", "there is none", "name", False, 0))
    else:
        if message.action in ("rename", "remove"):
            del broker.kept[message.name]
        if message.action == "rename":
            voice = broker.kept[message.to] = replace(voice, name=message.to)
        broker.send(peer, _done(message.query_id, voice, voice.prompt if message.action == "export" else b""))


def _done(query_id: int, voice: AddVoice, recording: bytes = b"") -> VoiceDone:
    return VoiceDone(query_id, _row(voice), voice.prompt_text, recording)


def _row(voice: AddVoice) -> VoiceRow:
    digest = hashlib.sha256(voice.prompt).hexdigest()
    return VoiceRow(voice.name, voice.owner, voice.shared, 1_790_000_000.0, len(voice.prompt), digest)


def _status(broker: FakeBroker, peer: bytes, message: GetStatus) -> None:
    rows = tuple(WorkerStatus(f"{stage}-1", stage, "nano", "ready", 4, 0, 12.0, 0.5) for stage in broker.stages)
    broker.send(peer, Status(message.query_id, "fake", "memory", 12.0, 0, len(broker.serving), 3, 1, rows))


def _forget(broker: FakeBroker, peer: bytes, message: EndAck) -> None:
    broker.serving.pop(message.request_id, None)


HANDLERS: dict[type[Message], Handler] = {
    Hello: welcome,
    Resume: forgotten,
    Synth: serve,
    Finish: _finished,
    Convert: serve,
    Credit: _more_credit,
    Cancel: _cancelled,
    EndAck: _forget,
    ListVoices: _voices,
    GetStatus: _status,
    AddVoice: _add,
    VoiceAction: _act,
}
