"""The packed flow gives the mel of the model's own streaming, whatever shares its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_pages import RESERVED, PagePool
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import Flow, FlowHop, load_flow

GOLDEN = Path(__file__).parents[1] / "golden"
CHUNK = 25
AHEAD = 3
SLOTS = 6


@pytest.fixture(scope="module", params=["cosyvoice2-tiny", "cosyvoice3-tiny"])
def flow(request: pytest.FixtureRequest) -> Flow:
    torch.set_num_threads(1)
    return load_flow(ModelDirectory.open(GOLDEN / request.param))


class Request:
    """One request's tokens, and its mel by the model's own streaming in hops of `hops` chunks, the rest at the end."""

    def __init__(self, flow: Flow, seed: int, hops: list[int], rest: int, prompt: int) -> None:
        numbers = torch.Generator().manual_seed(seed)
        count = CHUNK * sum(hops) + AHEAD + rest
        self.tokens = torch.randint(flow.config.vocabulary, (count,), generator=numbers)
        self.hops, self.rest = hops, rest
        self.embedding = torch.randn(flow.config.speaker_size, generator=numbers)
        self.prompt = torch.randn(prompt, flow.config.mel, generator=numbers)
        self.pages: list[int] = []
        self.mel: list[Tensor] = []

    def reference(self, flow: Flow) -> Tensor:
        state, at, mel = flow.start(self.embedding, self.prompt), 0, []
        for chunks in self.hops:
            [result] = flow.advance([FlowHop(state, self.tokens[at : at + CHUNK * chunks + AHEAD], False)])
            assert result.state is not None
            state, at = result.state, at + CHUNK * chunks
            mel.append(result.mel)
        mel.append(flow.advance([FlowHop(state, self.tokens[at:], True)])[0].mel)
        return torch.cat(mel)

    def task(self, flow: Flow, pool: PagePool) -> FlowTask:
        """The next hop; its pages are taken."""
        done, hop = len(self.pages), len(self.mel)
        final = hop == len(self.hops)
        tokens = self.tokens[CHUNK * done :]
        if not final:
            tokens = tokens[: CHUNK * self.hops[hop] + AHEAD]
        self.pages += [pool.take() for _ in range(-(-(len(tokens) - (0 if final else AHEAD)) // CHUNK))]
        state = flow.start(self.embedding, self.prompt)
        return FlowTask(list(self.pages), done, tokens.numpy().astype(np.int32), final, state.speaker, self.prompt)


def requests(flow: Flow) -> st.SearchStrategy[Request]:
    hops = st.lists(st.integers(1, 2), max_size=3)
    return st.builds(Request, st.just(flow), st.integers(0, 99), hops, st.integers(0, CHUNK), st.integers(0, 120))


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_requests_that_join_between_any_steps_get_the_mel_they_get_alone(flow, data):
    with torch.inference_mode():
        waiting = data.draw(st.lists(requests(flow), min_size=1, max_size=4))
        everyone = list(waiting)
        pool = PagePool(flow, RESERVED + 40)
        batch = FlowBatch(flow, pool, SLOTS)
        running: dict[FlowTask, Request] = {}
        while waiting or running:
            joins = []
            while waiting and data.draw(st.booleans()) | (not running and not joins):
                task = waiting[0].task(flow, pool)
                if task.chunks > batch.free_slots - sum(other.chunks for other in joins):
                    for _ in range(task.chunks):
                        pool.drop(waiting[0].pages.pop())
                    break
                joins.append(task)
                running[task] = waiting.pop(0)
            if joins:
                batch.join(joins)
            some = [task for task in running if data.draw(st.booleans())] or list(running)
            for task in batch.tick(some):
                request = running.pop(task)
                request.mel.append(batch.mel(task))
                batch.leave(task)
                if len(request.mel) <= len(request.hops):
                    waiting.append(request)
        for request in everyone:
            reference = request.reference(flow)
            assert (torch.cat(request.mel) - reference).abs().max() < 2e-5 * reference.std()
        assert batch.free_slots == SLOTS
