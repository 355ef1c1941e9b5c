"""The client library at a running broker that is full, or whose client does not read."""

from __future__ import annotations

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.errors import Overloaded, SlowClient
from lighttts.transport import wire
from lighttts.transport.transport import Sockets
from tests.broker.peers import Crew, RunningApp


def test_a_caller_that_does_not_read_loses_its_request_and_another_notices_nothing() -> None:
    with (
        RunningApp(slow_client_s=0.3, max_credit=2) as running,
        Sockets() as sockets,
        Client(running.endpoints.clients) as client,
    ):
        crew = Crew(sockets, running)
        slow = client.synthesize("Hello.", voice="anna")
        crew.bring_to_decoding(slow.request_id)
        frames = crew.speak(slow.request_id, 6)[:3]
        quick = client.synthesize("Hello.", voice="anna")
        crew.bring_to_decoding(quick.request_id)
        made = crew.speak(quick.request_id, 6)
        np.testing.assert_array_equal(quick.audio(), np.concatenate([frame.samples for frame in made]))
        while client.status().active:
            pass
        for frame in frames[:2]:
            np.testing.assert_array_equal(next(slow), frame.samples)
        with pytest.raises(SlowClient, match="taken nothing"):
            next(slow)


def test_a_full_broker_refuses_at_once_and_serves_who_tries_again() -> None:
    with (
        RunningApp(max_requests=1) as running,
        Sockets() as sockets,
        Client(running.endpoints.clients) as client,
        Client(running.endpoints.clients) as other,
    ):
        crew = Crew(sockets, running)
        first = client.synthesize("Hello.", voice="anna")
        assert crew.encode.hear(wire.EncodeWork).request_id == first.request_id
        with pytest.raises(Overloaded) as refused:
            other.synthesize("Hello.", voice="anna").audio()
        assert refused.value.retryable
        assert refused.value.retry_after
        again = other.synthesize("Hello.", voice="anna", retries=3)
        # The answer comes after that to the request before it on the same connection: another refusal.
        other.status()
        first.cancel()
        assert crew.encode.hear(wire.Abort).request_id == first.request_id
        assert crew.encode.hear(wire.EncodeWork).request_id == f"{again.request_id}.1"
