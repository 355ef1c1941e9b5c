"""CUDA graphs: work that only touches the device, replayed without the cost of launching its kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

WARMUPS = 2

Result = TypeVar("Result")
Shape = TypeVar("Shape", bound=Hashable)


class Captures:
    """Captures into one memory pool, for functions that never run at the same time.

    What a function returns stays in place and is what the replay returns, overwritten by the next one; everything else
    it allocates is shared with the others.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # The libraries' scratch memory is a stream's. Graphs captured on one stream would write over each other's when
        # they are replayed side by side, as those of the language model and of the flow are.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """A replay of `function`, which runs a few times before."""
        # Libraries allocate and choose kernels at their first calls, which must not be captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARMUPS):
                function()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


class Captured(Generic[Shape]):
    """Runs `work`, a function of a shape; on a GPU as a graph, captured at the first run of the shape."""

    def __init__(self, work: Callable[[Shape], None], device: torch.device) -> None:
        self._work = work
        self._captures = Captures() if device.type == "cuda" else None
        self._replays: dict[Shape, Callable[[], None]] = {}

    def has(self, shape: Shape) -> bool:
        """Whether `shape` runs without being captured first."""
        return self._captures is None or shape in self._replays

    def prepare(self, shape: Shape) -> None:
        """Captures the graph of `shape`, which runs `work` a few times."""
        if self._captures is not None and shape not in self._replays:
            self._replays[shape] = self._captures.capture(lambda: self._work(shape))

    def run(self, shape: Shape) -> None:
        if self._captures is None:
            self._work(shape)
            return
        self.prepare(shape)
        self._replays[shape]()
