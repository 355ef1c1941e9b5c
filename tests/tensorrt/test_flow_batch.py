"""Tasks of a tick that take the exported graph get the mel that the packed estimator gives them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_pages import RESERVED, PagePool
from lighttts.models.flow import CausalMaskedDiffWithXvec
from lighttts.tensorrt import flow_batch
from lighttts.tensorrt.flow_batch import TensorRTFlowBatch
from lighttts.tensorrt.velocity import CachedVelocity

CHUNK, AHEAD, SLOTS = 25, 3, 8


class Request:
    """Random tokens in hops of `hops` chunks, `rest` tokens at the end."""

    def __init__(self, flow: CausalMaskedDiffWithXvec, seed: int, hops: list[int], rest: int) -> None:
        numbers = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(flow.config.vocabulary, (CHUNK * sum(hops) + AHEAD + rest,), generator=numbers)
        self.hops = hops
        self.state = flow.start(torch.randn(flow.config.speaker_size, generator=numbers), torch.randn(60, 80))
        self.pages: list[int] = []
        self.turn = 0

    @property
    def chunks(self) -> int:
        """Of the next hop."""
        if self.turn < len(self.hops):
            return self.hops[self.turn]
        return -(-(len(self.tokens) - CHUNK * len(self.pages)) // CHUNK)

    def task(self, pool: PagePool) -> FlowTask:
        first, final = len(self.pages), self.turn == len(self.hops)
        given = self.tokens[CHUNK * first :]
        if not final:
            given = given[: CHUNK * self.chunks + AHEAD]
        self.pages += [pool.take() for _ in range(self.chunks)]
        self.turn += 1
        tokens = given.numpy().astype(np.int32)
        return FlowTask(list(self.pages), first, tokens, final, self.state.speaker, self.state.prompt)


def run(batch: FlowBatch, pool: PagePool, requests: list[Request], late: int) -> list[list[Tensor]]:
    """The mel of each hop of each request; the last request joins `late` ticks after the others."""
    mels: list[list[Tensor]] = [[] for _ in requests]
    running: dict[FlowTask, int] = {}
    tick = 0
    while running or any(request.turn <= len(request.hops) for request in requests):
        for index, request in enumerate(requests):
            waits = tick < late and index == len(requests) - 1 and bool(running)
            idle = index not in running.values() and request.turn <= len(request.hops)
            if idle and not waits and request.chunks <= batch.free_slots:
                task = request.task(pool)
                batch.join([task])
                running[task] = index
        for task in batch.tick(list(running)):
            mels[running.pop(task)].append(batch.mel(task))
            batch.leave(task)
        tick += 1
    return mels


hops = st.lists(st.integers(1, 2), max_size=2)
requests = st.lists(st.tuples(st.integers(0, 99), hops, st.integers(0, CHUNK)), min_size=1, max_size=3)


def both(flow: CausalMaskedDiffWithXvec, cached: CachedVelocity, asked: list, late: int) -> list[tuple[Tensor, Tensor]]:
    """The mel of every hop by the engine and by the parent."""
    found = []
    for batch_of in (lambda *where: TensorRTFlowBatch(*where, cached), FlowBatch):
        torch.manual_seed(0)
        pool = PagePool(flow, RESERVED + 40)
        everyone = [Request(flow, *one) for one in asked]
        found.append([mel for mels in run(batch_of(flow, pool, SLOTS), pool, everyone, late) for mel in mels])
    return list(zip(*found, strict=True))


@settings(deadline=None, max_examples=7, suppress_health_check=list(HealthCheck))
@given(asked=requests, late=st.integers(0, 15))
def test_tasks_of_any_sizes_and_steps_share_a_call(flow, cached, asked, late) -> None:
    with torch.inference_mode():
        for ours, reference in both(flow, cached, asked, late):
            assert (ours - reference).abs().max() < 2e-5 * max(1.0, float(reference.std()))


ASKED = [(1, [2, 1], 20), (2, [1, 1], 5), (3, [1], 25)]


def test_tasks_that_the_engine_holds_never_take_the_packed_estimator(flow, cached, monkeypatch) -> None:
    monkeypatch.setattr(FlowBatch, "tick", None)
    pool = PagePool(flow, RESERVED + 40)
    mels = run(TensorRTFlowBatch(flow, pool, SLOTS, cached), pool, [Request(flow, *one) for one in ASKED], 0)
    assert [len(of_request) for of_request in mels] == [3, 3, 2]


def test_tasks_that_the_engine_does_not_hold_take_it(flow, cached) -> None:
    profile = replace(cached.profile, past=replace(cached.profile.past, most=50))
    narrow = CachedVelocity(cached._session, cached.shape, cached.dtype, profile)
    for ours, reference in both(flow, narrow, ASKED, 3):
        assert (ours - reference).abs().max() < 2e-5 * float(reference.std())


@pytest.mark.parametrize("pages", [1, 3])
def test_groups_gather_no_more_pages_than_they_may(flow, cached, monkeypatch, pages) -> None:
    monkeypatch.setattr(flow_batch, "PAST_PAGES", pages)
    seen = []
    advance = TensorRTFlowBatch._advance
    monkeypatch.setattr(
        TensorRTFlowBatch, "_advance", lambda self, tasks: (seen.append(tasks), advance(self, tasks))[1]
    )
    for ours, reference in both(flow, cached, ASKED, 3):
        assert (ours - reference).abs().max() < 2e-5 * float(reference.std())
    assert any(len(group) > 1 for group in seen)
    assert all(len(group) == 1 or len(group) * max(task.first for task in group) <= pages for group in seen)
