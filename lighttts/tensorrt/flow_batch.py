"""The flow on packed chunks with TensorRT's estimator: what a task needs of its pages is put together for each step.

An engine sees tensors, not pages, and a task's chunks as one hop. So the tasks of a tick go through it in groups of
like sizes, each task a row (and one without conditions). Gathering their pasts is what this costs over an estimator
that reads pages where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_pages import SCRATCH, START, PagePool
from lighttts.models.cfm import GUIDANCE_HALVES
from lighttts.models.flow import Flow
from lighttts.tensorrt.velocity import CachedVelocity

PAST_PAGES = 128
"""Pages of past that a group may gather, padding counted: 1.5 GB at CosyVoice2-0.5B's sizes in half precision."""


class TensorRTFlowBatch(FlowBatch):
    """A `FlowBatch` whose ticks take `velocity`; tasks of sizes that it does not hold take the parent's estimator.

    A page gets its chunk's tails only if the chunk is the last of its task: no request may go on from another.
    """

    def __init__(self, flow: Flow, pool: PagePool, slots: int, velocity: CachedVelocity) -> None:
        super().__init__(flow, pool, slots)
        self._velocity = velocity

    @torch.inference_mode()
    def tick(self, tasks: Sequence[FlowTask]) -> list[FlowTask]:
        others = [task for task in tasks if not self._holds(1, task.chunks, task.first)]
        if others:
            super().tick(others)
        for group in self._groups([task for task in tasks if task not in others]):
            self._advance(group)
            for task in group:
                task.done += 1
        return [task for task in tasks if task.done == self.steps]

    def _holds(self, tasks: int, chunks: int, past: int) -> bool:
        frames = 2 * self._chunk
        return self._velocity.profile.holds(GUIDANCE_HALVES * tasks, frames * chunks, frames * past)

    def _groups(self, tasks: Sequence[FlowTask]) -> Iterator[list[FlowTask]]:
        """`tasks` in as few groups as the engine and `PAST_PAGES` allow, like with like."""
        group: list[FlowTask] = []
        for task in sorted(tasks, key=lambda task: (task.chunks, task.first)):
            past = max([task.first, *(other.first for other in group)])
            fits = self._holds(len(group) + 1, task.chunks, past) and past * (len(group) + 1) <= PAST_PAGES
            if group and not fits:
                yield group
                group = []
            group.append(task)
        if group:
            yield group

    def _advance(self, tasks: Sequence[FlowTask]) -> None:
        """One solver step of tasks that fit into one call."""
        rows = _Rows(tasks, self._scratch, self._look_ahead, 2 * self._chunk, self._x.device)
        decoder, dtype = self.flow.decoder, self._velocity.dtype
        x = torch.where(rows.known[..., None], self._x[rows.slots].flatten(1, 2), 0)
        speaker = self._speaker[rows.slots[:, 0]]
        conditions = (self._mu[rows.slots].flatten(1, 2), speaker, self._prompt[rows.slots].flatten(1, 2))
        mu, speaker, prompt = (torch.cat([part, torch.zeros_like(part)]) for part in conditions)
        out = self._velocity.velocity(
            x.to(dtype).repeat(GUIDANCE_HALVES, 1, 1),
            mu,
            speaker,
            prompt,
            decoder.times[rows.step].repeat(GUIDANCE_HALVES),
            rows.mask.repeat(GUIDANCE_HALVES, 1),
            self._past(rows),
            self._pool.solver_tails[rows.before, rows.step].transpose(0, 1).flatten(0, 1),
        )
        self._keep(rows, out.keys_values, out.tails)
        x = decoder.follow(x, rows.step[:, None, None], out.velocity)
        self._x[rows.slots] = x.view(*rows.slots.shape, 2 * self._chunk, -1)

    def _past(self, rows: _Rows) -> Tensor:
        """Keys and values of the pages before each task, (layers, 2, halves x tasks, frames, width)."""
        pages = self._pool.solver_kv[rows.past, rows.step[:, None]]
        return pages.permute(2, 4, 3, 0, 1, 6, 5, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _keep(self, rows: _Rows, keys_values: Tensor, tails: Tensor) -> None:
        """Puts the state of each task's chunks into their pages."""
        kv = self._pool.solver_kv
        tasks, chunks = rows.slots.shape
        split = keys_values.view(*keys_values.shape[:2], GUIDANCE_HALVES, tasks, chunks, -1, kv.size(5), kv.size(7))
        kv[rows.pages, rows.step[:, None]] = split.permute(3, 4, 0, 2, 1, 6, 5, 7).to(kv.dtype)
        halves = tails.view(GUIDANCE_HALVES, tasks, *tails.shape[1:]).transpose(0, 1)
        self._pool.solver_tails[rows.last, rows.step] = halves.to(kv.dtype)


class _Rows:
    """Where the tasks of a call lie, int64 on the device: a row each.

    `slots`, `pages`: (tasks, chunks), padded with what takes the padding of a batch; `past`: (tasks, pages before),
    right-aligned behind START; `before`, `last`: page of the chunk before the task, and of its last; `step`: of the
    solver; `known`, `mask`: bool (tasks, new frames) and (tasks, past and new frames), which frames are real.
    """

    def __init__(
        self, tasks: Sequence[FlowTask], scratch: int, look_ahead: int, frames: int, device: torch.device
    ) -> None:
        chunks, past = max(task.chunks for task in tasks), max(task.first for task in tasks)
        numbers = np.empty((len(tasks), 5 + past + 2 * chunks), np.int64)
        for row, task in zip(numbers, tasks, strict=True):
            before, padding = task.pages[task.first - 1] if task.first else START, chunks - task.chunks
            real = 2 * (len(task.tokens) - (0 if task.final else look_ahead))
            row[:5] = real, task.first, before, task.pages[-1], task.done
            row[5 : 5 + past] = [START] * (past - task.first) + list(task.pages[: task.first])
            row[5 + past : 5 + past + chunks] = [*task.pages[task.first :], *[SCRATCH] * padding]
            row[5 + past + chunks :] = [*task.slots, *[scratch] * padding]
        sent = torch.from_numpy(numbers).to(device, non_blocking=True)
        new, first, self.before, self.last, self.step = sent[:, :5].unbind(1)
        self.past, rest = sent[:, 5 : 5 + past], sent[:, 5 + past :]
        self.pages, self.slots = rest[:, :chunks], rest[:, chunks:]
        columns = torch.arange(-past * frames, chunks * frames, device=device)
        self.mask = (columns >= -frames * first[:, None]) & (columns < new[:, None])
        self.known = self.mask[:, past * frames :]
