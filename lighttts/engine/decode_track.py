"""What the paged decode engine knows of a request and of a voice beside their streams: pages, deadlines, work ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lighttts.engine.decode_stream import DecodeStream, Tokens, VoicePrompt
from lighttts.engine.flow_batch import FlowTask
from lighttts.engine.flow_pages import PagePool
from lighttts.engine.schedule import Hop
from lighttts.models.flow import Flow

VOICES = 1024
"""Voices kept that nobody speaks with."""
NEAR_DRY_S = 0.3
"""Seconds of audio in hand below which a stream goes before those that wait for their first."""


class Owner(Protocol):
    """Whose pages a task fills: a request, or a voice's prompt."""

    pages: list[int]
    task: FlowTask | None


@dataclass(eq=False)
class VoicePast:
    """A voice on the device: `speaker` (mel,), `prompt` (frames, mel), and the pages of its prompt's first chunks.

    `whole`: the chunks of the prompt that lie in it with their look-ahead, which all requests of the voice share.
    `users`: open requests.
    """

    tokens: Tokens
    speaker: Tensor
    prompt: Tensor
    whole: int
    pages: list[int] = field(default_factory=list)
    task: FlowTask | None = None
    users: int = 0


@dataclass(eq=False)
class Track:
    """An open request. `opened`: when; `heard`: when its first audio was handed out; times of the engine's clock.

    `hop`: what is under way, until its mel is there.
    """

    stream: DecodeStream
    voice: VoicePast
    opened: float
    pages: list[int] = field(default_factory=list)
    task: FlowTask | None = None
    hop: Hop | None = None
    heard: float | None = None
    made: int = 0
    """Samples made, handed out or on their way."""
    ended: bool = False
    """Its last hop is computed."""

    def ready(self) -> Hop | None:
        """The hop that can be begun now."""
        return None if self.task or self.hop or self.ended else self.stream.next_hop()

    def urgency(self, now: float, rate: int) -> tuple[int, float]:
        """Sorts: about to run dry, then those that have nothing yet, then those with audio in hand."""
        if self.heard is None:
            return 1, self.opened
        in_hand = self.heard + self.made / rate - now
        return (0 if in_hand < NEAR_DRY_S else 2), in_hand


def give_up(owner: Owner, pool: PagePool) -> None:
    """Drop all pages of `owner`; they have to be computed again."""
    for page in owner.pages:
        pool.drop(page)
    owner.pages = []


class VoicePasts:
    """Voices by key, those last asked for last."""

    def __init__(self, flow: Flow, pool: PagePool) -> None:
        self._flow, self._pool = flow, pool
        self._pasts: OrderedDict[str, VoicePast] = OrderedDict()
        self._doomed: set[str] = set()

    def get(self, voice: VoicePrompt) -> VoicePast:
        """What is known of `voice`, without pages at first."""
        self._drop_doomed()
        past = self._pasts.get(voice.key)
        if past is None:
            config = self._flow.config
            state = self._flow.start(torch.from_numpy(voice.embedding), torch.from_numpy(voice.mel))
            whole = max(0, len(voice.tokens) - config.look_ahead) // config.chunk
            past = self._pasts[voice.key] = VoicePast(voice.tokens, state.speaker, state.prompt, whole)
        self._pasts.move_to_end(voice.key)
        unused = [key for key, other in self._pasts.items() if other is not past and not (other.users or other.task)]
        for key in unused[: max(0, len(self._pasts) - VOICES)]:
            give_up(self._pasts.pop(key), self._pool)
        return past

    def forget(self, key: str) -> None:
        """Drop what is known of voice `key`, of which no request is open; if its prompt is being computed, after it."""
        self._doomed.add(key)
        self._drop_doomed()

    def _drop_doomed(self) -> None:
        for key in tuple(self._doomed):
            past = self._pasts.get(key)
            if past is None or not past.task:
                self._doomed.discard(key)
            if past is not None and not (past.users or past.task):
                give_up(self._pasts.pop(key), self._pool)

    def unused(self) -> Iterator[VoicePast]:
        """Those with pages that no request needs, oldest first."""
        return (past for past in self._pasts.values() if past.pages and not (past.users or past.task))
