"""What the flow keeps of finished chunks, in pages of one chunk each: many requests' pasts in one tensor.

Every layer of the flow is causal but for attention inside a chunk, so a chunk (25 tokens, 50 mel frames) is computed
from its own tokens, the last frames each convolution saw of the chunk before, and the keys and values of all chunks
before. A page holds the latter two of one chunk: a request is a list of pages, requests of one voice share those of its
prompt, and what a batch computes is any set of chunks, whatever requests they are of. Pages as a unit of a cache:
Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", arXiv:2309.06180.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lighttts.models.flow import Flow
from lighttts.models.streaming import StackShape, Window

START = 0
"""Stands before a request's first chunk: zeros, never written."""
SCRATCH = 1
"""Takes what the padding of a batch computes."""
RESERVED = 2


@dataclass(frozen=True)
class Blocks:
    """The chunks of a batch, a row each. int64 tensors on the device, of (blocks,) but for `table`.

    `page`: of the chunk; `before`: of the chunk before it; `table`: (blocks, longest), the pages from the request's
    first chunk to this one, `count` of them; `length`: frames of this chunk that are real; `step`: of the solver.
    `ahead`: how many of the chunks right before it are in the batch, in the rows right before it.
    """

    page: Tensor
    before: Tensor
    table: Tensor
    count: Tensor
    length: Tensor
    step: Tensor
    ahead: Tensor

    def last_pages(self, width: int) -> tuple[Tensor, Tensor]:
        """The last `width` pages of each row, (blocks, width), right-aligned behind START, and which are real."""
        places = self.count[:, None] - width + torch.arange(width, device=self.count.device)
        real = places >= 0
        pages = self.table.gather(1, places.clamp(min=0))
        return torch.where(real, pages, START), real


@dataclass(frozen=True)
class EncoderStore:
    """Pages of one stack: `kv` (pages, layers, 2, frames, width), `tails` (pages, tail, channels).

    `ratio`: frames a token.
    """

    kv: Tensor
    tails: Tensor
    ratio: int


class PagePool:
    """`pages` pages, some of which are reserved.

    `solver_kv`: (pages, steps, layers, halves, 2, heads, frames, head size); `solver_tails`: (pages, steps, halves,
    tail, channels); `encoder`: of each of the flow's encoder stacks. All in the model's dtype; `page_bytes` is what a
    page of them takes.
    """

    def __init__(self, flow: Flow, pages: int) -> None:
        config, solver = flow.config, flow.decoder.shape
        heads, size = config.estimator.heads, config.estimator.head_size

        def store(*place: int) -> Tensor:
            return torch.zeros((pages, *place), device=flow.device, dtype=flow.dtype)

        self.solver_kv = store(solver.passes, solver.layers, solver.rows, 2, heads, config.estimator.chunk, size)
        self.solver_tails = store(solver.passes, solver.rows, solver.tail, solver.channels)
        self.encoder = [
            EncoderStore(
                store(shape.layers, 2, ratio * config.chunk, shape.width), store(shape.tail, shape.channels), ratio
            )
            for shape, ratio in flow.encoder_stacks
        ]
        self.pages = pages
        self._users = [0] * pages
        self._free = list(range(pages - 1, RESERVED - 1, -1))

    @staticmethod
    def page_bytes(flow: Flow) -> int:
        """Memory of one page."""

        def numbers(shape: StackShape, frames: int) -> int:
            kept = 2 * frames * shape.layers * shape.width + shape.tail * shape.channels
            return shape.passes * shape.rows * kept

        stacks = [(flow.decoder.shape, 2), *flow.encoder_stacks]
        return sum(numbers(shape, ratio * flow.config.chunk) for shape, ratio in stacks) * flow.dtype.itemsize

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def usable(self) -> int:
        return self.pages - RESERVED

    def take(self) -> int:
        """A free page, held once. Raises `IndexError` if there is none."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, page: int) -> None:
        """Hold `page` once more."""
        self._users[page] += 1

    def drop(self, page: int) -> None:
        """Hold `page` once less; it is free when nobody does."""
        self._users[page] -= 1
        if not self._users[page]:
            self._free.append(page)


class EncoderWindow(Window):
    """One chunk a row of an encoder stack, with the pages before it.

    `width`: pages that a row looks at, as many as the longest past has and this chunk's own.
    """

    def __init__(self, store: EncoderStore, blocks: Blocks, width: int) -> None:
        size = store.kv.size(-2)
        pages, known = blocks.last_pages(width)
        mask = known[..., None].expand(-1, -1, size).clone()
        real = blocks.length * store.ratio // 2
        mask[:, -1] = torch.arange(size, device=real.device) < real[:, None]
        super().__init__(mask.flatten(1)[:, None, None], store.tails.size(1))
        self.past = (width - 1) * size
        self._kv, self._tails, self._blocks, self._pages = store.kv, store.tails, blocks, pages

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._kv[self._blocks.page, layer] = torch.stack([keys, values], dim=1)
        both = self._kv[self._pages, layer]
        return both[:, :, 0].flatten(1, 2), both[:, :, 1].flatten(1, 2)

    def lead(self, first: int, x: Tensor) -> Tensor:
        last = first + x.size(-1)
        self._tails[self._blocks.page, :, first:last] = x[:, -self.tail :]
        return torch.cat([self._tails[self._blocks.before, :, first:last], x], dim=1)
