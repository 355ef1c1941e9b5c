"""CUDA graphs of work whose inputs and outputs lie in tensors that stay in place."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

WARMUPS = 2

Shape = TypeVar("Shape", bound=Hashable)


class Captured(Generic[Shape]):
    """Runs `work`, a function of a shape; on a GPU as a graph, captured at the first run of the shape.

    The graphs of one work share their memory: no two of them run at the same time.
    """

    def __init__(self, work: Callable[[Shape], None], device: torch.device) -> None:
        self._work = work
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] | None = {} if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def has(self, shape: Shape) -> bool:
        """Whether `shape` runs without being captured first."""
        return self._graphs is None or shape in self._graphs

    def prepare(self, shape: Shape) -> None:
        """Captures the graph of `shape`, which runs `work` a few times."""
        if self._graphs is None or self.has(shape):
            return
        # Libraries allocate and choose kernels at their first calls, which must not be captured.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self._work(shape)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._work(shape)
        self._graphs[shape] = graph

    def run(self, shape: Shape) -> None:
        if self._graphs is None:
            self._work(shape)
            return
        self.prepare(shape)
        self._graphs[shape].replay()
