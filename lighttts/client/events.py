"""What the client's core tells: instructions to its loop, and events for the callers who wait."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lighttts.errors import LightTTSError
from lighttts.transport.wire import Message, Status, VoiceDone, VoiceList, Voices

Chunk = npt.NDArray[np.float32] | npt.NDArray[np.int16] | npt.NDArray[np.int32]
Key = str | int
"""Who an event is for: a request's id, or a query's number."""


@dataclass(frozen=True)
class Started:
    """The request is admitted; `sample_rate` in Hz."""

    sample_rate: int


@dataclass(frozen=True, eq=False)
class Arrived:
    """The next chunk; `tokens`: speech tokens up to its end."""

    chunk: Chunk
    tokens: int


@dataclass(frozen=True)
class Finished:
    """Everything has arrived; `tokens` speech tokens in all."""

    tokens: int


@dataclass(frozen=True, eq=False)
class Failed:
    """Nothing more comes."""

    error: LightTTSError


@dataclass(frozen=True)
class Answered:
    """The answer to a query."""

    message: Voices | Status | VoiceDone | VoiceList


@dataclass(frozen=True)
class Sent:
    """So many bytes of a text in pieces are on their way to the broker."""

    size: int


Event = Started | Arrived | Finished | Failed | Answered | Sent
FINAL = (Finished, Failed, Answered)


@dataclass(frozen=True)
class Send:
    """Instruction: send `message` to the broker."""

    message: Message


@dataclass(frozen=True)
class Deliver:
    """Instruction: hand `event` to whoever waits under `key`."""

    key: Key
    event: Event


@dataclass(frozen=True)
class Connect:
    """Instruction: close the connection there is, and open one to `endpoint`."""

    endpoint: str


Instruction = Send | Deliver | Connect
