"""The flow on packed chunks: tasks of any requests join and leave between the steps of the solver.

A task is some chunks of one request, computed together from its pages. Joining, its features are made; then each `tick`
moves every task given by one solver step, whatever step that is, as a language model's batch moves by one token. What a
chunk needs lies in a slot of preallocated tensors; the host only names slots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lighttts.engine.capture import Captured
from lighttts.engine.flow_ops import FlowOps, TorchOps
from lighttts.engine.flow_packed import pack
from lighttts.engine.flow_pages import SCRATCH, START, Blocks, EncoderWindow, PagePool
from lighttts.models.cfm import NOISE_FRAMES
from lighttts.models.flow import Flow

WIDTHS = (8, 32, 128, 512)
"""Pages of past to which a batch is rounded up."""
SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
"""Chunks to which a tick is rounded up."""
JOINS = (1, 2, 4, 8, 16)
"""Chunks to which the making of features is rounded up."""

_PAGE, _BEFORE, _COUNT, _LENGTH, _STEP = range(5)
_FACTS = 5


@dataclass(eq=False)
class FlowTask:
    """Chunks `first` to the last of `pages` of one request, whose earlier pages are computed.

    `tokens`: int32, those from chunk `first` on, and the look-ahead unless `final`; `speaker`: (mel,), `prompt`:
    (frames, mel), the request's, on the device.
    """

    pages: Sequence[int]
    first: int
    tokens: npt.NDArray[np.int32]
    final: bool
    speaker: Tensor
    prompt: Tensor
    slots: list[int] = field(default_factory=list)
    done: int = 0

    @property
    def chunks(self) -> int:
        return len(self.pages) - self.first


class FlowBatch:
    """Up to `slots` chunks at once. Pure device work: the caller holds the pages."""

    def __init__(self, flow: Flow, pool: PagePool, slots: int, ops: FlowOps | None = None) -> None:
        self.flow = flow
        self.steps = flow.decoder.config.steps
        self._chunk, self._look_ahead = flow.config.chunk, flow.config.look_ahead
        self._pool = pool
        device, dtype = flow.device, flow.dtype
        frames, mel = 2 * self._chunk, flow.config.mel
        self._longest = -(-NOISE_FRAMES // frames)
        self._free = list(range(slots - 1, -1, -1))
        self._scratch = slots
        if ops is None and device.type == "cuda":
            from lighttts.kernels.flow import TritonOps

            ops = TritonOps()
        self._ops = ops or TorchOps()
        with torch.inference_mode():
            self._estimator = pack(flow.decoder, pool, self._ops)
            rows = slots + 1
            self._facts = torch.zeros(_FACTS, rows, dtype=torch.int64, device=device)
            self._table = torch.zeros(rows, self._longest, dtype=torch.int64, device=device)
            self._x = torch.zeros(rows, frames, mel, device=device)
            self._mu, self._prompt = (torch.zeros(rows, frames, mel, device=device, dtype=dtype) for _ in range(2))
            self._speaker = torch.zeros(rows, mel, device=device, dtype=dtype)
            self._facts[:, slots] = torch.tensor([SCRATCH, START, 1, frames, 0], device=device)
            self._table[slots, 0] = SCRATCH
            self._rows = torch.zeros(2, SIZES[-1], dtype=torch.int64, device=device)
            self._joining = torch.zeros(JOINS[-1], self._chunk + self._look_ahead + 2, dtype=torch.int64, device=device)
        self._moves = Captured(self._move, device)
        self._features = Captured(self._make_features, device)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @torch.inference_mode()
    def prepare(self, width: int) -> None:
        """Captures all graphs for requests of up to `width` pages, so that none has to wait for it."""
        width = _rounded(width, WIDTHS)
        for size in SIZES[: 1 + bisect_left(SIZES, self._scratch)]:
            self._ready(self._moves, self._rows[0], (size, self._tick_width(width)))
        for size in JOINS:
            self._ready(self._features, self._joining[:, 0], (size, width))

    @torch.inference_mode()
    def join(self, tasks: Sequence[FlowTask]) -> None:
        """Give `tasks` slots, which the caller has seen to be free, and make their features."""
        rows = [row for task in tasks for row in self._describe(task)]
        device = self._facts.device
        width = max(len(task.pages) for task in tasks)
        numbers = torch.from_numpy(np.array([[*row.numbers, *row.padded(width)] for row in rows], np.int64))
        sent = numbers.to(device, non_blocking=True)
        slots, starts = sent[:, 0], sent[:, 1]
        self._facts[:, slots] = sent[:, 2 : 2 + _FACTS].T
        joining = sent[:, 2 + _FACTS : 2 + _FACTS + self._chunk + self._look_ahead + 1]
        self._table[slots, :width] = sent[:, -width:]
        frames = torch.arange(2 * self._chunk, device=device)
        self._x[slots] = self.flow.decoder.noise[(starts[:, None] + frames).clamp(max=NOISE_FRAMES - 1)]
        self._prompt[slots] = torch.stack([self._prompt_of(row) for row in rows])
        self._speaker[slots] = torch.stack([row.task.speaker for row in rows])
        for at in range(0, len(rows), JOINS[-1]):
            here = slice(at, at + JOINS[-1])
            shape = (_rounded(len(rows[here]), JOINS), _rounded(width, WIDTHS))
            self._ready(self._features, self._joining[:, 0], shape)
            self._joining[:, 0] = self._scratch
            self._joining[: len(rows[here])] = torch.cat([slots[here, None], joining[here]], dim=1)
            self._features.run(shape)

    @torch.inference_mode()
    def tick(self, tasks: Sequence[FlowTask]) -> list[FlowTask]:
        """Move `tasks` by one solver step; those that have done the last. Nothing is read back."""
        count = sum(task.chunks for task in tasks)
        shape = (_rounded(count, SIZES), self._tick_width(max(len(task.pages) for task in tasks)))
        self._ready(self._moves, self._rows[0], shape)
        rows = np.full((2, shape[0]), self._scratch, np.int64)
        rows[0, :count] = [slot for task in tasks for slot in task.slots]
        rows[1] = 0
        rows[1, :count] = [ahead for task in tasks for ahead in range(task.chunks)]
        self._rows[:, : shape[0]] = torch.from_numpy(rows).to(self._rows.device, non_blocking=True)
        self._moves.run(shape)
        for task in tasks:
            task.done += 1
        return [task for task in tasks if task.done == self.steps]

    def mel(self, task: FlowTask) -> Tensor:
        """float32 (frames, mel) of all chunks of a task that is done."""
        frames = 2 * (len(task.tokens) - (0 if task.final else self._look_ahead))
        return self._x[torch.tensor(task.slots).to(self._x.device, non_blocking=True)].flatten(0, 1)[:frames]

    def leave(self, task: FlowTask) -> None:
        """Free the slots of a task, done or not."""
        self._free += reversed(task.slots)
        task.slots = []

    def _describe(self, task: FlowTask) -> list[_Row]:
        known = len(task.tokens) - (0 if task.final else self._look_ahead)
        rows = []
        for index in range(task.chunks):
            chunk = task.first + index
            given = task.tokens[index * self._chunk :][: self._chunk + self._look_ahead]
            slot = self._free.pop()
            task.slots.append(slot)
            before = task.pages[chunk - 1] if chunk else START
            length = 2 * min(self._chunk, known - index * self._chunk)
            ids = [*given.tolist(), *[0] * (self._chunk + self._look_ahead - len(given))]
            start = 2 * self._chunk * chunk
            numbers = (slot, start, task.pages[chunk], before, chunk + 1, length, 0, len(given), *ids)
            rows.append(_Row(task, start, numbers, tuple(task.pages[: chunk + 1])))
        return rows

    def _prompt_of(self, row: _Row) -> Tensor:
        frames = 2 * self._chunk
        known = row.task.prompt[row.start : row.start + frames]
        return known if len(known) == frames else F.pad(known, (0, 0, 0, frames - len(known)))

    def _tick_width(self, width: int) -> int:
        return self._longest if self._ops.any_width else _rounded(width, WIDTHS)

    def _ready(self, graphs: Captured[tuple[int, int]], rows: Tensor, shape: tuple[int, int]) -> None:
        """Captures the graph of `shape`, if it has to, on `rows` that hold no request."""
        if not graphs.has(shape):
            rows.fill_(self._scratch)
            graphs.prepare(shape)

    def _blocks(self, rows: Tensor, ahead: Tensor, width: int) -> Blocks:
        page, before, count, length, step = self._facts[:, rows]
        return Blocks(page, before, self._table[:, :width][rows], count, length, step, ahead)

    def _make_features(self, shape: tuple[int, int]) -> None:
        size, width = shape
        rows, given, ids = self._joining[:size, 0], self._joining[:size, 1], self._joining[:size, 2:]
        pool = self._pool
        blocks = self._blocks(rows, rows, width)
        known = torch.arange(ids.size(1), device=ids.device) < given[:, None]
        windows = [EncoderWindow(store, blocks, width) for store in pool.encoder]
        self._mu[rows] = self.flow.features(ids, known, *windows)

    def _move(self, shape: tuple[int, int]) -> None:
        size, width = shape
        rows = self._rows[0, :size]
        blocks = self._blocks(rows, self._rows[1, :size], width)
        x, decoder = self._x[rows], self.flow.decoder
        inputs = torch.zeros(2, *x.shape[:2], 4 * x.size(2), device=x.device, dtype=self._mu.dtype)
        inputs[..., : x.size(2)] = x
        speaker = self._speaker[rows, None].expand(-1, x.size(1), -1)
        inputs[0, ..., x.size(2) :] = torch.cat([self._mu[rows], speaker, self._prompt[rows]], dim=-1)
        given, free = self._estimator.velocity(inputs.flatten(0, 1), blocks).float().chunk(2)
        guidance = decoder.config.guidance
        length = decoder.lengths[blocks.step][:, None, None]
        self._x[rows] = x + length * ((1 + guidance) * given - guidance * free)
        self._facts[_STEP, rows] = (blocks.step + 1) % self.steps


@dataclass(frozen=True)
class _Row:
    """A chunk on its way to the device: slot, first frame, facts, number of tokens given, the tokens."""

    task: FlowTask
    start: int
    numbers: tuple[int, ...]
    pages: tuple[int, ...]

    def padded(self, width: int) -> tuple[int, ...]:
        return self.pages + (SCRATCH,) * (width - len(self.pages))


def _rounded(count: int, sizes: Sequence[int]) -> int:
    return sizes[bisect_left(sizes, count)]
