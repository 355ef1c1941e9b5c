"""CUDA graphs of a decode step, which on a GPU takes far longer to launch than to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

REACH = 256
"""Positions to which the reach of a graph's attention is rounded up: a graph is captured for each such reach."""
WARMUPS = 3


class StepGraphs:
    """Replays `step`, a function of the reach whose every other input and output lies in tensors that stay in place.

    `state` are those of them that a step reads and writes: capturing leaves them as they were. At most `longest`
    positions are reached.
    """

    def __init__(self, step: Callable[[int], None], state: torch.Tensor, longest: int) -> None:
        self._step = step
        self._state = state
        self._longest = longest
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture_all(self) -> None:
        """Captures every graph there can be, so that no request has to wait for it."""
        for reach in range(REACH, self._longest + REACH, REACH):
            self._graph(min(reach, self._longest))

    def run(self, positions: int) -> None:
        """One step whose attention reaches `positions` at least."""
        self._graph(min(-(-positions // REACH) * REACH, self._longest)).replay()

    def _graph(self, reach: int) -> torch.cuda.CUDAGraph:
        if reach not in self._graphs:
            self._graphs[reach] = self._capture(reach)
        return self._graphs[reach]

    def _capture(self, reach: int) -> torch.cuda.CUDAGraph:
        before = self._state.clone()
        # Libraries allocate and choose kernels at their first calls, which must not be captured.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self._step(reach)
                self._state.copy_(before)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(reach)
        return graph
