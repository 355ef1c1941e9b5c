"""The paged decode engine with TensorRT's estimator gives each request what it would get alone."""

from __future__ import annotations

import pytest

from lighttts.engine.decode_paged import PagedDecodeEngine
from lighttts.engine.flow_batch import FlowBatch
from lighttts.engine.flow_pages import RESERVED
from lighttts.tensorrt.flow_batch import TensorRTFlowBatch
from tests.engine.test_decode_engine import Request, drain, models
from tests.engine.test_decode_paged import SLOTS, Clock, expect_alone

REQUESTS = [Request(40, 0, 130, seed=1), Request(57, 90, 60, seed=2), Request(10, 0, 24, seed=3)]


@pytest.mark.parametrize("pages", [RESERVED + 10, RESERVED + 60], ids=["pasts are given up", "there is room"])
def test_requests_that_join_and_are_cancelled_have_their_own_mel(cached, monkeypatch, pages) -> None:
    monkeypatch.setattr(FlowBatch, "tick", None)
    flow, hift = models()
    engine = PagedDecodeEngine(flow, hift, max_streams=16, slots=SLOTS, pages=pages, clock=Clock())
    engine._batch = TensorRTFlowBatch(flow, engine._pool, SLOTS, cached)
    steps = []
    for key, request in enumerate((*REQUESTS, REQUESTS[0])):
        request.open(engine, key)
        engine.feed(key, request.tokens[:70], request.count <= 70)
        steps += [step for _ in range(5) for step in engine.step()]
    engine.close(len(REQUESTS))
    for key, request in enumerate(REQUESTS):
        if request.count > 70:
            engine.feed(key, request.tokens[70:], True)
        steps += [step for _ in range(3) for step in engine.step()]
    steps += drain(engine)
    for key, request in enumerate(REQUESTS):
        expect_alone(request, steps, key)
