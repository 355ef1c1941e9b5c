"""A worker's membership at a broker: it registers, grants credit, beats, drains and leaves, and is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lighttts.transport.schema import U32, U63, Flag, Many, Text
from lighttts.transport.wire.fields import Epoch, Name, Names, Stage
from lighttts.transport.wire.limits import MAX_STYLES
from lighttts.transport.wire.message import Message, Since, tagged


@tagged(0x40)
@dataclass(frozen=True, slots=True, eq=False)
class Register(Message):
    """First message of a worker boot; answered by `Registered`. `epoch`: random per boot; `voices`: encode only.

    `model`: the model directory's name, a hash of its files, and the style of an llm worker if it has one, with colons
    between. `styles`: those that an llm worker answers to; the default is "", beside its name if it has one.
    """

    worker: Name
    epoch: Epoch
    stage: Stage
    software: Name
    model: Name
    sample_rate: U32
    voices: Names
    styles: Annotated[tuple[str, ...], Many(Text(128), MAX_STYLES), Since(3)] = ("",)


@tagged(0x50)
@dataclass(frozen=True, slots=True, eq=False)
class Registered(Message):
    """Answers `Register`. The worker beats every `heartbeat_ms`; it re-registers when it has heard nothing for
    `expiry_ms`. Any message counts as alive on both sides."""

    epoch: Epoch
    broker: Name
    heartbeat_ms: U32
    expiry_ms: U32


@tagged(0x41)
@dataclass(frozen=True, slots=True, eq=False)
class Grant(Message):
    """The worker can take `credit` more requests. Work is sent only against granted credit."""

    epoch: Epoch
    credit: U32


@tagged(0x42)
@dataclass(frozen=True, slots=True, eq=False)
class Heartbeat(Message):
    """The worker lives. `progress` counts engine steps: it moves while `active` requests are worked on."""

    epoch: Epoch
    active: U32
    waiting: U32
    progress: U63


@tagged(0x56)
@dataclass(frozen=True, slots=True, eq=False)
class Alive(Message):
    """Answers `Heartbeat`, so that a worker notices a broker that is gone. `known` is false when the worker must
    register again (the broker restarted, or had given the worker up)."""

    epoch: Epoch
    known: Flag


@tagged(0x57)
@dataclass(frozen=True, slots=True, eq=False)
class Ping(Message):
    """Asks nothing, needs no answer: by sending it the broker learns whether a silent worker's connection stands."""

    epoch: Epoch


@tagged(0x43)
@dataclass(frozen=True, slots=True, eq=False)
class Drain(Message):
    """The worker finishes what it has and takes nothing new; its outstanding credit is void."""

    epoch: Epoch


@tagged(0x44)
@dataclass(frozen=True, slots=True, eq=False)
class Bye(Message):
    """The worker leaves now; whatever it still had is lost. Answered by `Farewell`."""

    epoch: Epoch


@tagged(0x55)
@dataclass(frozen=True, slots=True, eq=False)
class Farewell(Message):
    """Answers `Bye`: every message before it has arrived, the worker may close its sockets."""

    epoch: Epoch
