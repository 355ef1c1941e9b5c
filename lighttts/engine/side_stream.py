"""Work beside a GPU's main stream of work; on a CPU, in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """A CUDA stream of its own: small kernels of two streams fill a GPU that one of them leaves idle."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def after(self, *given: Tensor) -> Iterator[None]:
        """What is launched within runs here, after all that the current stream has been given so far.

        `given`: tensors of the current stream that it reads.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        for tensor in given:
            # Else their memory would be free for the other stream's next tensor as soon as the host forgets them.
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What the current stream is given from now on runs after all that was launched here."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
