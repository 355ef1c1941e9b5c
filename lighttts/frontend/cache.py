"""A cache of voice features that forgets the least recently used, bounded in bytes and in time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from lighttts.frontend.prompt import VoiceFeatures


class FeatureCache:
    """Features by the digest of the prompt file they came from. Safe to share between threads."""

    def __init__(self, limit: int, seconds: float = float("inf"), clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: most bytes of arrays held; features larger than that are not kept, 0 keeps nothing. `seconds`: how
        long they are kept after their last use. `clock`: monotonic seconds."""
        self.limit = limit
        self.size = 0
        """Bytes of arrays held."""
        self.hits = 0
        self.misses = 0
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[str, tuple[VoiceFeatures, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> VoiceFeatures | None:
        """The features kept under `digest`, counted as a hit, or None, counted as a miss."""
        with self._lock:
            self._expire()
            entry = self._entries.pop(digest, None)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries[digest] = (entry[0], self._clock())
            return entry[0]

    def put(self, digest: str, features: VoiceFeatures) -> None:
        """Keep `features`, forgetting the least recently used until they fit."""
        with self._lock:
            self._drop(digest)
            if features.nbytes > self.limit:
                return
            while self.size + features.nbytes > self.limit:
                self._drop(next(iter(self._entries)))
            self._entries[digest] = (features, self._clock())
            self.size += features.nbytes

    def forget(self, digest: str) -> None:
        """Keep nothing under `digest`."""
        with self._lock:
            self._drop(digest)

    def expire(self) -> None:
        """Forget what was not used for too long."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        until = self._clock() - self._seconds
        while self._entries:
            digest, (_, used) = next(iter(self._entries.items()))
            if used >= until:
                return
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        entry = self._entries.pop(digest, None)
        if entry:
            self.size -= entry[0].nbytes
