"""What becomes of instructions: messages that are taken, that wait for a full peer, that nobody is there for."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from lighttts.broker.core import Core
from lighttts.broker.executor import Executor
from lighttts.broker.outbox import Frames
from lighttts.broker.state import MemoryStore
from lighttts.broker.voice_questions import AskVoices, Voiced
from lighttts.config import BrokerConfig
from lighttts.transport import wire
from lighttts.transport.transport import Delivery
from tests.broker.harness import CLIENT, SAMPLE_RATE, encoded, raw, synth, tokens


class FakeRouter:
    """Keeps what was sent; answers as `delivery` says."""

    def __init__(self) -> None:
        self.mail: dict[bytes, list[wire.Message]] = defaultdict(list)
        self.delivery = Delivery.SENT

    def send(self, target: bytes, frames: Frames) -> Delivery:
        if self.delivery is Delivery.SENT:
            self.mail[target].append(wire.decode(frames))
        return self.delivery


class Rig:
    """A core, its executor, and routers in place of sockets, with one worker of each stage."""

    def __init__(self) -> None:
        self.core = Core(BrokerConfig(), name="test", store="memory", durable=False, now=0.0)
        self.clients, self.workers, self.store = FakeRouter(), FakeRouter(), MemoryStore()
        self.fetched: list[str] = []
        self.asked: list[AskVoices] = []
        routers: Any = (self.clients, self.workers)
        later = (self.fetched.append, self.asked.append)
        self.executor = Executor(self.core, *routers, self.store, lambda: 0.0, *later)
        for epoch, stage in enumerate(wire.STAGES, 1):
            hello = wire.Register(stage, epoch, stage, "", "", SAMPLE_RATE, ("anna",))
            for message in (hello, wire.Grant(epoch, 1)):
                self.executor.run(self.core.worker_message(stage.encode(), raw(message), 0.0))

    def say(self, message: wire.Message) -> None:
        """The client says something; where there are voices, there are none."""
        self.executor.run(self.core.client_message(CLIENT, raw(message), 0.0))
        for number, _ in self.asked:
            self.executor.run(self.core.voices_answered(number, Voiced(()), 0.0))
        self.asked.clear()

    def result(self, message: wire.Message) -> None:
        """A worker pushes a result."""
        self.executor.run(self.core.result(raw(message), 0.0))


@pytest.fixture
def rig() -> Rig:
    """A fresh one."""
    return Rig()


def test_a_frame_for_a_client_that_is_gone_ends_its_requests_and_aborts_their_work(rig: Rig) -> None:
    rig.say(synth(output="tokens"))
    rig.result(encoded("r1", 1))
    rig.clients.delivery = Delivery.GONE
    rig.result(tokens("r1", 2, 0))
    assert rig.workers.mail[b"llm"][-1] == wire.Abort("r1", 0)
    assert rig.core.idle
    assert [*rig.store.requests] == [*rig.store._parked] == ["r1"]


def test_an_answer_for_a_client_that_is_gone_ends_its_requests_too(rig: Rig) -> None:
    rig.say(synth())
    rig.clients.delivery = Delivery.GONE
    rig.say(wire.ListVoices(1))
    assert rig.workers.mail[b"encode"][-1] == wire.Abort("r1", 0)
    assert rig.core.idle


def test_a_worker_that_is_gone_when_work_is_sent_to_it_is_given_up(rig: Rig) -> None:
    rig.workers.delivery = Delivery.GONE
    rig.say(synth())
    assert [type(message) for message in rig.clients.mail[CLIENT]] == [wire.Accepted]
    assert rig.core.load().workers["encode"] == 0


def test_what_a_full_peer_does_not_take_is_sent_at_a_later_tick(rig: Rig) -> None:
    rig.clients.delivery = Delivery.FULL
    rig.say(wire.ListVoices(1))
    rig.say(synth(output="tokens"))
    rig.result(encoded("r1", 1))
    rig.result(tokens("r1", 2, 0, last=True))
    rig.clients.delivery = Delivery.SENT
    rig.executor.run(rig.core.tick(0.1))
    kinds = [type(message) for message in rig.clients.mail[CLIENT]]
    assert kinds == [wire.Voices, wire.Accepted, wire.Tokens, wire.End]
