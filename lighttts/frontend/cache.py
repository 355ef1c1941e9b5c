"""A cache of voice features that forgets the least recently used, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from lighttts.frontend.prompt import VoiceFeatures


class FeatureCache:
    """Features by the digest of the prompt file they came from. Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        """`limit`: most bytes of arrays held; features larger than that are not kept, 0 keeps nothing."""
        self.limit = limit
        self.size = 0
        """Bytes of arrays held."""
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[str, VoiceFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> VoiceFeatures | None:
        """The features kept under `digest`, counted as a hit, or None, counted as a miss."""
        with self._lock:
            features = self._entries.get(digest)
            if features is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(digest)
            return features

    def put(self, digest: str, features: VoiceFeatures) -> None:
        """Keep `features`, forgetting the least recently used until they fit."""
        with self._lock:
            previous = self._entries.pop(digest, None)
            if previous is not None:
                self.size -= previous.nbytes
            if features.nbytes > self.limit:
                return
            while self.size + features.nbytes > self.limit:
                self.size -= self._entries.popitem(last=False)[1].nbytes
            self._entries[digest] = features
            self.size += features.nbytes
