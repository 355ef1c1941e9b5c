"""However a request is ended early, every slot it had in a real worker is free again, and work goes on in it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lighttts.client import Client, Synthesis
from lighttts.errors import Cancelled, DeadlineExceeded, Overloaded
from lighttts.transport.wire import Status
from tests.system.stack import ROOT, Stack

SLOTS = 2
REQUESTS = 4
"""Two have the slots, two wait for them."""
TEXT = "The quick brown fox jumps over the lazy dog. " * 60
"""Far more than is spoken before it is ended."""
PATIENCE_S = 60.0
VANISHING_CLIENT = f"""
import sys
from lighttts.client import Client

client = Client(sys.argv[1])
streams = [client.synthesize({TEXT!r}, seed=seed) for seed in range({REQUESTS})]
for stream in streams[:{SLOTS}]:
    next(stream)
print("speaking", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    places = ["encode.concurrency", "llm.slots", "decode.streams"]
    settings = [f"broker.client_requests={REQUESTS}", *(f"{place}={SLOTS}" for place in places)]
    with Stack(tmp_path_factory.mktemp("s"), settings=settings) as running:
        yield running


@pytest.fixture
def watcher(small: Stack) -> Iterator[Client]:
    with Client(small.endpoint) as client:
        yield client


def begin(client: Client) -> list[Synthesis]:
    """Requests for all slots and more; those that have the slots have begun to speak."""
    streams = [client.synthesize(TEXT, seed=seed) for seed in range(REQUESTS)]
    for stream in streams[:SLOTS]:
        next(stream)
    return streams


@contextmanager
def ends_all(watcher: Client, failing: int = REQUESTS) -> Iterator[None]:
    """What happens within ends all requests early, and leaves every worker as free as it was."""
    before = watcher.status()
    yield
    give_up = time.monotonic() + PATIENCE_S
    while not free(status := watcher.status()):
        assert time.monotonic() < give_up, status
    assert status.failed == before.failed + failing
    assert len(watcher.synthesize("Hello.", seed=1).audio()) > 0


def free(status: Status) -> bool:
    return not (status.active or status.queued) and all(row.credit == SLOTS for row in status.workers)


def test_a_cancel_frees_every_slot(small: Stack, watcher: Client) -> None:
    with Client(small.endpoint) as client, ends_all(watcher):
        for stream in begin(client):
            stream.cancel()
            with pytest.raises(Cancelled):
                stream.audio()


def test_a_client_that_is_killed_frees_every_slot(small: Stack, watcher: Client) -> None:
    """They have not failed: they are kept for a client that comes back."""
    with ends_all(watcher, failing=0):
        command = [sys.executable, "-c", VANISHING_CLIENT, small.endpoint]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
            assert process.stdout
            assert process.stdout.readline() == "speaking\n"
            process.send_signal(signal.SIGKILL)


def test_a_deadline_frees_every_slot(small: Stack, watcher: Client) -> None:
    with Client(small.endpoint) as client, ends_all(watcher):
        streams = [client.synthesize(TEXT, seed=seed, deadline=2.0) for seed in range(REQUESTS)]
        for stream in streams:
            with pytest.raises(DeadlineExceeded):
                stream.audio()


def test_a_client_at_its_quota_is_refused_at_once_and_served_by_a_retry_when_there_is_room(
    small: Stack, watcher: Client
) -> None:
    with Client(small.endpoint) as client, ends_all(watcher):
        streams = begin(client)
        with pytest.raises(Overloaded) as refused:
            client.synthesize("One too many.").audio()
        assert refused.value.retry_after
        patient = client.synthesize("One too many.", seed=1, retries=5)
        for stream in streams:
            stream.cancel()
        assert len(patient.audio()) > 0
