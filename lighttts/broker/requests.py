"""A request in the broker: its states as a table, its record, and the table of all requests."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lighttts.broker.flow import Flow
from lighttts.broker.live import Live
from lighttts.broker.outbox import Frames, Outbox
from lighttts.broker.token_log import TokenLog
from lighttts.errors import InternalError, LightTTSError
from lighttts.transport.wire import (
    OLDEST,
    STAGES,
    CheckWork,
    Convert,
    Encoded,
    Message,
    SpeechRequest,
    Synth,
    Tokens,
    encode,
    since,
)

if TYPE_CHECKING:
    from lighttts.broker.workers import Worker


class State(enum.Enum):
    """What a request waits for or has come to."""

    RECEIVED = "received"
    """Its record is being stored."""
    ADMITTED = "admitted"
    """It waits for an encode worker."""
    ENCODING = "encoding"
    ENCODED = "encoded"
    """It waits for an llm worker, unless it has its tokens. An errand is over."""
    GENERATING = "generating"
    DECODING = "decoding"
    """All tokens are made, the rest of the output is not."""
    FLUSHING = "flushing"
    """All output is made, the client's credit is not enough for it."""
    ENDING = "ending"
    """`End` is on its way, the client has not acknowledged it."""
    FAILED = "failed"
    """`Error` is on its way, the client has not acknowledged it."""
    CANCELLED = "cancelled"
    """`Error` with code cancelled is on its way, the client has not acknowledged it."""
    PARKED = "parked"
    """Its client's connection broke: whichever broker the client comes to goes on with it."""
    FORGOTTEN = "forgotten"


_S = State
_BROKEN_OFF = frozenset({_S.FAILED, _S.CANCELLED, _S.PARKED})

TRANSITIONS: dict[State, frozenset[State]] = {
    _S.RECEIVED: _BROKEN_OFF | {_S.ADMITTED},
    _S.ADMITTED: _BROKEN_OFF | {_S.ENCODING},
    _S.ENCODING: _BROKEN_OFF | {_S.ENCODED},
    _S.ENCODED: _BROKEN_OFF | {_S.GENERATING, _S.DECODING, _S.FORGOTTEN},
    _S.GENERATING: _BROKEN_OFF | {_S.DECODING, _S.FLUSHING},
    _S.DECODING: _BROKEN_OFF | {_S.FLUSHING},
    _S.FLUSHING: _BROKEN_OFF | {_S.ENDING},
    _S.ENDING: frozenset({_S.FORGOTTEN, _S.PARKED}),
    _S.FAILED: frozenset({_S.FORGOTTEN}),
    _S.CANCELLED: frozenset({_S.FORGOTTEN}),
    _S.PARKED: frozenset(),
    _S.FORGOTTEN: frozenset(),
}
CLOSED = frozenset({_S.ENDING, _S.FAILED, _S.CANCELLED, _S.PARKED, _S.FORGOTTEN})

PATHS: dict[tuple[type[Message], str], tuple[str, ...]] = {
    (Synth, "audio"): ("encode", "llm", "decode"),
    (Synth, "mel"): ("encode", "llm", "decode"),
    (Synth, "tokens"): ("encode", "llm"),
    (Convert, "audio"): ("encode", "decode"),
    (Convert, "mel"): ("encode", "decode"),
}
"""The stages that a request passes through, by what it is and its output."""

ATTEMPTS = 1 << 16
"""Numbers of attempts, as messages have them."""
ROWS_PER_SECOND = {"mel": 50, "tokens": 25}
"""Rows of an output in a second of speech; those of audio are the sample rate."""


@dataclass(slots=True, eq=False)
class Request:
    """One request; times are monotonic seconds. `holders`: which worker has which stage of it in hand.

    By stage: `attempts`, how often it was begun again; `deaths`, workers lost with it since it last got on there. And
    `isolated`: the stages where its last worker had no other suspect.
    """

    id: str
    client: bytes
    asked: SpeechRequest
    outbox: Outbox
    received: float
    deadline: float
    state: State = State.RECEIVED
    attempts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    deaths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    isolated: set[str] = field(default_factory=set)
    accepted: bool = False
    encoded: Encoded | None = None
    holders: dict[str, Worker] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    log: TokenLog = field(default_factory=TokenLog)
    flow: Flow = field(default_factory=Flow)
    farewell: Frames = ()
    """The `End` or `Error` that closes it."""
    closed: float = 0.0
    offered: float = 0.0
    """When `farewell` was last sent."""
    voice_digest: str = ""
    """SHA-256 of the recording it speaks with, if that is a registered voice's."""
    told: Callable[[str | LightTTSError, float], None] | None = None
    """An errand: work of the broker's own, a voice's recording to be encoded. Who is told what its features are called,
    or what went wrong; its client hears nothing of it, and no store keeps it."""
    live: Live | None = None
    """Its text, if that comes in pieces."""
    history: list[tuple[float, State]] = field(default_factory=list)

    def suspect(self, stage: str) -> bool:
        """Whether it may be what its last worker of `stage` died of."""
        return self.deaths[stage] > 0

    def version(self, stage: str) -> int:
        """The version of the protocol that has words for its work at `stage`."""
        if stage == "encode":
            return CheckWork.FIRST if self.told else since(self.asked)
        unusual = self.in_pieces if stage == "llm" else isinstance(self.asked, Convert)
        return since(self.asked) if unusual else OLDEST

    def style(self, stage: str) -> str:
        """The style that its worker of `stage` must answer to: language models alone have any."""
        return self.asked.style if stage == "llm" and isinstance(self.asked, Synth) else ""

    def particular(self, stage: str) -> bool:
        """Whether not every worker of `stage` may have it: others need not wait until it has one."""
        return self.suspect(stage) or self.version(stage) > OLDEST

    @property
    def readdressed(self) -> bool:
        """Whether its decode worker knows it by another attempt than its llm worker."""
        return self.attempts["decode"] != self.attempts["llm"]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages it passes through."""
        if self.told:
            return ("encode",)
        return PATHS[type(self.asked), self.asked.output]

    @property
    def in_pieces(self) -> bool:
        """Whether its text comes in pieces."""
        return isinstance(self.asked, Synth) and bool(self.asked.pieces)

    @property
    def last_sentence(self) -> int | None:
        """The number of its last sentence, if that is known."""
        if self.live:
            return self.live.end
        return len(self.encoded.lengths) - 1 if self.encoded else None

    @property
    def generated(self) -> bool:
        """Whether all its tokens are made."""
        last = self.last_sentence
        return last is not None and self.log.sentence > last

    @property
    def method(self) -> str:
        """What is asked for: conversion, instruct, voice (to be added); else how the voice is given: preset (or
        registered), zero_shot or cross_lingual."""
        if self.told:
            return "voice"
        if isinstance(self.asked, Convert):
            return "conversion"
        if self.asked.instruct:
            return "instruct"
        if self.asked.voice:
            return "preset"
        return "zero_shot" if self.asked.prompt_text else "cross_lingual"

    def renumber(self, stage: str) -> None:
        """Its next work at `stage` is another attempt: results of the one before are then known to be late."""
        self.attempts[stage] = (self.attempts[stage] + 1) % ATTEMPTS

    def move(self, state: State, now: float) -> None:
        """Changes the state. Raises `InternalError` with the history when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            past = " ".join(f"{at:.3f}:{was.value}" for at, was in self.history)
            raise InternalError(f"request {self.id} cannot go from {self.state.value} to {state.value}; before: {past}")
        self.history.append((now, self.state))
        self.state = state

    def fits(self, encoded: Encoded) -> bool:
        """Whether the encode stage's result is one of such a request."""
        if self.told:
            return not encoded.lengths
        if isinstance(self.asked, Convert):
            return len(encoded.source_tokens) > 0 and not encoded.lengths
        if self.live:
            return bool(encoded.pieces) and not encoded.lengths and not len(encoded.text_ids)
        return bool(encoded.lengths) and sum(encoded.lengths) == len(encoded.text_ids)

    def take(self, encoded: Encoded) -> None:
        """It is encoded. A conversion has all its tokens with that: they are its only sentence."""
        self.encoded = encoded
        if self.live:
            self.live.method = encoded.pieces
        if isinstance(self.asked, Convert):
            source = encoded.source_tokens
            whole = Tokens(self.id, self.attempts["llm"], encoded.epoch, 0, 0, final=True, last=True, tokens=source)
            self.log.add(encode(whole), len(source), final=True)

    def drop_audio(self) -> int:
        """Frees its recordings, which only the encode stage needs; returns how many bytes they had."""
        size = audio_bytes(self.asked)
        if isinstance(self.asked, Convert):
            self.asked = replace(self.asked, prompt=b"", source=b"")
        elif size:
            self.asked = replace(self.asked, prompt=b"")
        return size


def audio_bytes(asked: SpeechRequest) -> int:
    """Bytes of the recordings that come with a request."""
    return len(asked.prompt) + (len(asked.source) if isinstance(asked, Convert) else 0)


class RequestTable:
    """All requests: `live` ones by id, `closing` ones that wait for the client's acknowledgement, and per client."""

    def __init__(self) -> None:
        self.live: dict[str, Request] = {}
        self.closing: dict[str, Request] = {}
        self.clients: dict[bytes, dict[str, Request]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.live or request_id in self.closing

    @property
    def waiting(self) -> int:
        """Live requests that no worker has anything of yet, or now."""
        return sum(not request.holders and request.state is not _S.FLUSHING for request in self.live.values())

    def add(self, request: Request) -> None:
        """Enters a new live request."""
        self.live[request.id] = request
        self.clients.setdefault(request.client, {})[request.id] = request

    def get(self, request_id: str) -> Request | None:
        """The request of that id, live or closing."""
        return self.live.get(request_id) or self.closing.get(request_id)

    def owned(self, client: bytes, request_id: str) -> Request | None:
        """The request of that id, if it is this client's."""
        return self.clients.get(client, {}).get(request_id)

    def close(self, request: Request) -> None:
        """Moves a live request to the closing ones."""
        self.closing[request.id] = self.live.pop(request.id)

    def remove(self, request: Request) -> None:
        """Removes a request."""
        self.live.pop(request.id, None)
        self.closing.pop(request.id, None)
        mine = self.clients[request.client]
        del mine[request.id]
        if not mine:
            del self.clients[request.client]
