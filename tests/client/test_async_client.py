"""The asyncio client against a broker of real sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from lighttts.client import AsyncClient
from lighttts.client.session import WINDOW
from lighttts.errors import Cancelled, DeadlineExceeded, Overloaded, Unavailable, UnknownVoice
from lighttts.transport.wire import Cancel, Convert, EndAck, Synth
from tests.client.fake_broker import RATE, FakeBroker, accept_only, chunk_of, refuse


def with_client(broker: FakeBroker, body: Callable[[AsyncClient], Awaitable[None]], **options: float) -> None:
    """Runs `body` with a client of `broker` in a fresh event loop, in debug mode: a blocked loop would be reported."""

    async def main() -> None:
        async with AsyncClient(broker.endpoint, **options) as client:
            await body(client)

    asyncio.run(main())


def expected(request: Synth, chunks: int) -> np.ndarray:
    return np.concatenate([chunk_of(request, number) for number in range(chunks)])


def test_chunks_arrive_in_order_with_progress() -> None:
    async def body(client: AsyncClient) -> None:
        synthesis = client.synthesize("Hello.", seed=3)
        assert await synthesis.sample_rate() == RATE
        chunks = [chunk async for chunk in synthesis]
        np.testing.assert_array_equal(np.concatenate(chunks), expected(broker.wait_for(Synth), 4))
        assert synthesis.tokens == 100
        assert synthesis.seed == 3
        assert broker.wait_for(EndAck).request_id == synthesis.request_id

    with FakeBroker() as broker:
        with_client(broker, body)


def test_conversions_arrive_in_order() -> None:
    async def body(client: AsyncClient) -> None:
        chunks = [chunk async for chunk in client.convert(b"RIFF....", voice="june", seed=3, output="mel")]
        request = broker.wait_for(Convert)
        assert (request.source, request.voice, request.output) == (b"RIFF....", "june", "mel")
        for number, chunk in enumerate(chunks):
            np.testing.assert_array_equal(chunk, chunk_of(request, number).astype(np.float32))

    with FakeBroker() as broker:
        with_client(broker, body)


def test_many_requests_at_once_do_not_mix() -> None:
    async def body(client: AsyncClient) -> None:
        results = await asyncio.gather(*(client.synthesize("Hello.", seed=seed).audio() for seed in range(30)))
        for request in broker.all(Synth):
            np.testing.assert_array_equal(results[request.seed], expected(request, 50))

    with FakeBroker(chunks=50) as broker:
        with_client(broker, body)


def test_voices_and_status() -> None:
    async def body(client: AsyncClient) -> None:
        assert await client.voices() == ("heart", "june")
        assert (await client.status()).broker == "fake"

    with FakeBroker() as broker:
        with_client(broker, body)


def test_typed_errors_are_raised_in_the_iterator() -> None:
    async def body(client: AsyncClient) -> None:
        with pytest.raises(UnknownVoice, match="nobody"):
            await client.synthesize("Hello.", voice="nobody").audio()

    with FakeBroker(script={Synth: refuse("unknown_voice", "no voice nobody")}) as broker:
        with_client(broker, body)


def test_what_fails_is_tried_again_without_holding_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.retry.FIRST_S", 0.01)

    async def body(client: AsyncClient) -> None:
        with pytest.raises(Overloaded):
            await client.synthesize("Hello.", voice="heart", retries=2).audio()
        assert len(broker.all(Synth)) == 3

    script = {Synth: refuse("overloaded", "full", retryable=True, retry_after_ms=1)}
    with FakeBroker(script=script) as broker:
        with_client(broker, body)


def test_timeouts_are_typed_errors() -> None:
    async def body(client: AsyncClient) -> None:
        with pytest.raises(DeadlineExceeded, match="nothing arrived"):
            await client.synthesize("Hello.", voice="heart").audio()

    with FakeBroker(script={Synth: accept_only}) as broker:
        with_client(broker, body, timeout=0.2)


def test_no_broker_is_unavailable() -> None:
    async def body(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="lighttts-cli up"):
            await client.voices()

    with FakeBroker() as gone:
        pass
    with_client(gone, body, connect_timeout=0.2)


def test_leaving_async_with_cancels() -> None:
    async def body(client: AsyncClient) -> None:
        async with client.synthesize("Hello.", voice="heart") as synthesis:
            await anext(synthesis)
        broker.wait_for(Cancel)
        with pytest.raises(Cancelled):
            await anext(synthesis)

    with FakeBroker(chunks=10 * WINDOW) as broker:
        with_client(broker, body)


def test_a_cancelled_task_loses_no_chunk() -> None:
    async def body(client: AsyncClient) -> None:
        synthesis = client.synthesize("Hello.", seed=1)
        task = asyncio.ensure_future(anext(synthesis))
        await asyncio.tasks.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        np.testing.assert_array_equal(await synthesis.audio(), expected(broker.wait_for(Synth), 4))

    with FakeBroker() as broker:
        with_client(broker, body)


def test_a_loop_that_is_left_cancels_when_nothing_refers_to_the_synthesis() -> None:
    async def body(client: AsyncClient) -> None:
        async for _ in client.synthesize("Hello.", voice="heart"):
            break
        gc.collect()
        broker.wait_for(Cancel)

    with FakeBroker(chunks=10 * WINDOW) as broker:
        with_client(broker, body)


def test_events_for_a_closed_event_loop_harm_nobody() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker:

        async def begin() -> tuple[AsyncClient, object]:
            client = AsyncClient(broker.endpoint)
            synthesis = client.synthesize("Hello.", voice="heart")
            await synthesis.sample_rate()
            return client, synthesis

        client, synthesis = asyncio.run(begin())
        broker.stop()
        asyncio.run(client.close())
        assert synthesis is not None
        assert not client._loop._thread.is_alive()
