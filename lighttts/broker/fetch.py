"""Fetches stored requests in a thread of its own, for the store makes whoever reads it wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from lighttts.broker.state import Claim, Found, StateStore
from lighttts.errors import LightTTSError
from lighttts.logs import get_logger


class Fetcher:
    """Makes requests of `store` its broker's own; `fetched` gets each, or why there is none."""

    def __init__(self, store: StateStore, fetched: Callable[[str, Found], None]) -> None:
        self._store = store
        self._fetched = fetched
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._log = get_logger()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    def fetch(self, request_id: str) -> None:
        """Begins to fetch a request."""
        self._wanted.put(request_id)

    def close(self, timeout: float) -> None:
        """Ends the thread, waiting for it at most `timeout` seconds."""
        self._wanted.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (request_id := self._wanted.get()) is not None:
            try:
                found = self._take(request_id)
            except LightTTSError as error:
                self._log.warning("request cannot be fetched", request_id=request_id, problem=error.text)
                found = Claim.FOREIGN
            self._fetched(request_id, found)

    def _take(self, request_id: str) -> Found:
        claim = self._store.claim(request_id)
        if claim is not Claim.OURS:
            return claim
        return self._store.load(request_id).requests.get(request_id, Claim.ABSENT)
