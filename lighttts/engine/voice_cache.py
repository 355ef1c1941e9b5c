"""Flow states of voices' prompts, computed once and shared by the requests that speak with the voice.

Attention is chunk-causal, so the whole chunks of a prompt whose look-ahead lies inside it do not depend on what follows
them. Their `FlowState` is immutable: every request of the voice goes on from the same one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from lighttts.models.flow import FlowState


class VoiceCache:
    """States by voice key. Those that no request waits for are dropped, oldest first, above `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._states: OrderedDict[str, FlowState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def bytes(self) -> int:
        return sum(state.bytes for state in self._states.values())

    def get(self, key: str) -> FlowState | None:
        """The state of voice `key`, None if it has to be computed."""
        if key in self._states:
            self._states.move_to_end(key)
        return self._states.get(key)

    def put(self, key: str, state: FlowState) -> None:
        self._states[key] = state

    def forget(self, key: str) -> None:
        """Drop the state of voice `key`."""
        self._states.pop(key, None)

    def trim(self, awaited: Container[str]) -> None:
        """Drop the oldest states above the limit, but for those of the voices in `awaited`."""
        total = self.bytes
        for key, state in list(self._states.items()):
            if total <= self.limit:
                return
            if key not in awaited:
                total -= state.bytes
                del self._states[key]
