"""What workers keep of registered voices, so that they can be told to forget it."""

from __future__ import annotations

from collections import OrderedDict

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.requests import Request
from lighttts.broker.voice_records import VoiceRecord
from lighttts.transport.wire import MAX_VOICE_KEYS, Forget

REMEMBERED = 10_000
"""Most recordings of which it is remembered what their features are called."""
FORGOTTEN_S = 3600.0
"""Seconds after a removal in which a request that still spoke with the voice makes the workers forget it again: longer
than requests take."""


class Traces:
    """By the digest of a recording: the names that workers have given to its features, for they may differ with the
    machine; and those whose voice was removed."""

    def __init__(self, board: Board, dispatcher: Dispatcher) -> None:
        self._board = board
        self._dispatcher = dispatcher
        self._keys: OrderedDict[str, set[str]] = OrderedDict()
        self._forgotten: dict[str, float] = {}

    def learn(self, digest: str, voice_key: str) -> None:
        """A worker has called the features of a recording so."""
        keys = self._keys.setdefault(digest, set())
        self._keys.move_to_end(digest)
        if len(keys) < MAX_VOICE_KEYS:
            keys.add(voice_key)
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)

    def added(self, digest: str) -> None:
        """There is a voice of that recording (again)."""
        self._forgotten.pop(digest, None)

    def removed(self, voice: VoiceRecord, now: float) -> None:
        """A voice is there no more: workers are told to forget it."""
        self._forgotten[voice.digest] = now
        self.learn(voice.digest, voice.voice_key)
        self._forget(voice.digest)

    def encoded(self, request: Request, voice_key: str) -> None:
        """A request is encoded: if its voice was removed meanwhile, it has left features behind."""
        if request.voice_digest:
            self.learn(request.voice_digest, voice_key)
        if request.voice_digest in self._forgotten:
            self._forget(request.voice_digest)

    def tick(self, now: float) -> None:
        """Time has passed."""
        for digest in [digest for digest, at in self._forgotten.items() if now - at > FORGOTTEN_S]:
            del self._forgotten[digest]

    def _forget(self, digest: str) -> None:
        message = Forget(digest, tuple(sorted(self._keys.get(digest, ()))))
        for worker in self._board.workers:
            if worker.stage != "llm" and worker.version >= Forget.FIRST:
                self._dispatcher.send(worker, message)
