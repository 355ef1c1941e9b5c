"""Capturing a function that only touches the device, for replay without the cost of launching its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
WARMUPS = 2


class Captures:
    """Captures into one memory pool, for functions that never run at the same time.

    What a function returns stays in place and is what the replay returns, overwritten by the next one; everything else
    it allocates is shared with the others.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """A replay of `function`."""
        # Libraries allocate and choose kernels at their first calls, which must not be captured.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Result:
            graph.replay()
            return result

        return replay
