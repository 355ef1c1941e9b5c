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

from lighttts.models.flow import CausalMaskedDiffWithXvec
from lighttts.models.streaming import TAIL, Window

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


class PagePool:
    """`pages` pages, some of which are reserved.

    `solver_kv`: (pages, steps, layers, halves, 2, heads, frames, head size); `solver_tails`: (pages, steps, halves,
    TAIL, channels); `token_kv`, `frame_kv`: (pages, layers, 2, tokens or frames, width); `token_tails`: (pages, TAIL,
    channels). All in the model's dtype; `page_bytes` is what a page of them takes.
    """

    def __init__(self, flow: CausalMaskedDiffWithXvec, pages: int) -> None:
        config, solver = flow.config, flow.decoder.shape
        tokens, frames = flow.encoder.token_shape, flow.encoder.frame_shape
        heads, size = config.estimator.heads, config.estimator.head_size
        chunk = config.encoder.chunk
        places: list[tuple[int, ...]] = [
            (solver.passes, solver.layers, solver.rows, 2, heads, config.estimator.chunk, size),
            (solver.passes, solver.rows, TAIL, solver.channels),
            (tokens.layers, 2, chunk, tokens.width),
            (frames.layers, 2, 2 * chunk, frames.width),
            (TAIL, tokens.channels),
        ]
        stores = [torch.zeros((pages, *place), device=flow.device, dtype=flow.dtype) for place in places]
        self.solver_kv, self.solver_tails, self.token_kv, self.frame_kv, self.token_tails = stores
        self.pages = pages
        self._users = [0] * pages
        self._free = list(range(pages - 1, RESERVED - 1, -1))

    @staticmethod
    def page_bytes(flow: CausalMaskedDiffWithXvec) -> int:
        """Memory of one page."""
        solver, tokens, frames = flow.decoder.shape, flow.encoder.token_shape, flow.encoder.frame_shape
        chunk = flow.config.encoder.chunk
        numbers = solver.passes * solver.rows * (4 * chunk * solver.layers * solver.width + TAIL * solver.channels)
        numbers += chunk * (2 * tokens.layers * tokens.width + 4 * frames.layers * frames.width)
        return (numbers + TAIL * tokens.channels) * flow.dtype.itemsize

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
    """One chunk a row of an encoder stack, with the pages before it; `kv` and `tails` are the pool's for that stack.

    `width`: pages that a row looks at, as many as the longest past has and this chunk's own.
    """

    def __init__(self, kv: Tensor, tails: Tensor | None, blocks: Blocks, width: int, real: Tensor) -> None:
        """`real`: int64 (blocks,), frames of each chunk that are real."""
        size = kv.size(-2)
        pages, known = blocks.last_pages(width)
        mask = known[..., None].expand(-1, -1, size).clone()
        mask[:, -1] = torch.arange(size, device=real.device) < real[:, None]
        super().__init__(mask.flatten(1)[:, None, None])
        self.past = (width - 1) * size
        self._kv, self._tails, self._blocks, self._pages = kv, tails, blocks, pages

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._kv[self._blocks.page, layer] = torch.stack([keys, values], dim=1)
        both = self._kv[self._pages, layer]
        return both[:, :, 0].flatten(1, 2), both[:, :, 1].flatten(1, 2)

    def lead(self, first: int, x: Tensor) -> Tensor:
        assert self._tails is not None
        last = first + x.size(-1)
        self._tails[self._blocks.page, :, first:last] = x[:, -TAIL:]
        return torch.cat([self._tails[self._blocks.before, :, first:last], x], dim=1)
