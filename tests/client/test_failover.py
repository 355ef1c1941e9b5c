"""Clients that know several brokers, against brokers of real sockets: one is lost, another goes on."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import AsyncClient, Client
from lighttts.client.silence import Patience
from lighttts.errors import AccessDenied, ConfigError, Unavailable, UnknownRequest
from lighttts.transport.security import Domain, Guard
from lighttts.transport.transport import Sockets
from lighttts.transport.wire import OLDEST, Cancel, Hello, ListVoices, Resume, Synth, decode, encode, version_of
from tests.client.fake_broker import (
    RATE,
    FakeBroker,
    Handler,
    accept_only,
    begin_only,
    going_on_from,
    silent,
)
from tests.client.test_client import expected
from tests.transport.keys import Keyring


@pytest.fixture(autouse=True)
def _the_first_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client begins anywhere in its list; here it begins with the first."""
    monkeypatch.setattr("lighttts.client.loop.randrange", lambda count: 0)


@pytest.fixture
def gone() -> str:
    """An address where nobody listens."""
    with FakeBroker() as broker:
        pass
    return broker.endpoint


@contextmanager
def two(first: FakeBroker, second: FakeBroker) -> Iterator[Client]:
    with first, second, Client([first.endpoint, second.endpoint]) as client:
        yield client


# ---- a broker that is not there ----


def test_a_broker_that_is_dead_from_the_start_is_passed_over(gone: str) -> None:
    with FakeBroker() as broker, Client(f"{gone},{broker.endpoint}") as client:
        synthesis = client.synthesize("Hello.", seed=5)
        np.testing.assert_array_equal(synthesis.audio(), expected(broker.wait_for(Synth), 4))


def test_asyncio_clients_know_several_brokers_too(gone: str) -> None:
    async def ask() -> tuple[str, ...]:
        async with AsyncClient(f"{gone}, {broker.endpoint}") as client:
            return await client.voices()

    with FakeBroker() as broker:
        assert asyncio.run(ask()) == ("heart", "june")


def test_a_list_is_begun_at_any_of_its_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.loop.randrange", lambda count: count - 1)
    with FakeBroker(voices=("a",)) as first, FakeBroker(voices=("b",)) as second:
        with Client([first.endpoint, second.endpoint]) as client:
            assert client.voices() == ("b",)
        assert first.received == []


def test_all_being_dead_is_unavailable_within_the_connect_timeout_and_names_all(gone: str) -> None:
    with FakeBroker() as other:
        pass
    with Client([gone, other.endpoint], connect_timeout=0.5) as client:
        with pytest.raises(Unavailable, match=f"no broker answers at {gone} or {other.endpoint}"):
            client.voices()
        with pytest.raises(Unavailable, match="lighttts-cli up"):
            client.synthesize("Hello.").audio()


def test_a_wrong_address_anywhere_in_the_list_is_a_config_error(gone: str) -> None:
    with pytest.raises(ConfigError, match="'localhost' is not an address"):
        Client([gone, "localhost"])


def test_a_broker_that_takes_connections_but_does_not_answer_is_passed_over() -> None:
    with two(FakeBroker(script={Hello: silent}), FakeBroker(voices=("b",))) as client:
        assert client.voices() == ("b",)


# ---- a broker without workers ----


def test_a_broker_without_workers_is_passed_over() -> None:
    first, second = FakeBroker(ready=False), FakeBroker()
    with two(first, second) as client:
        client.synthesize("Hello.").audio()
    assert (len(first.all(Synth)), len(second.all(Synth))) == (0, 1)


def test_where_none_has_workers_requests_are_sent_nevertheless() -> None:
    first, second = FakeBroker(ready=False), FakeBroker(ready=False)
    with two(first, second) as client:
        client.synthesize("Hello.").audio()
    assert (len(first.all(Synth)), len(second.all(Synth))) == (0, 1)


# ---- a broker that is lost ----


def test_a_stream_goes_on_at_the_next_broker_sample_by_sample() -> None:
    first = FakeBroker(script={Synth: begin_only})
    second = FakeBroker(chunks=6, script={Resume: going_on_from(first)})
    with two(first, second) as client:
        synthesis = client.synthesize("Hello.", voice="heart", seed=5)
        heard = [next(synthesis), next(synthesis)]
        first.stop()
        audio = np.concatenate([*heard, synthesis.audio()])
        request = first.wait_for(Synth)
        np.testing.assert_array_equal(audio, expected(request, 6))
        resume = second.wait_for(Resume)
        assert (resume.request_id, resume.accepted) == (request.request_id, True)
        assert (resume.seq, resume.rows) == (2, sum(len(chunk) for chunk in heard))
    assert second.all(Synth) == []


def test_many_streams_go_on_at_the_next_broker() -> None:
    first = FakeBroker(script={Synth: begin_only})
    second = FakeBroker(chunks=6, script={Resume: going_on_from(first)})
    with two(first, second) as client:
        streams = [client.synthesize("Hello.", voice="heart", seed=number) for number in range(8)]
        heard = [next(stream) for stream in streams]
        first.stop()
        for number, (stream, chunk) in enumerate(zip(streams, heard, strict=True)):
            request = next(synth for synth in first.all(Synth) if synth.seed == number)
            np.testing.assert_array_equal(np.concatenate([chunk, stream.audio()]), expected(request, 6))


def test_a_question_without_an_answer_is_asked_again_at_the_next_broker() -> None:
    first, second = FakeBroker(script={ListVoices: silent}), FakeBroker(voices=("b",))
    with two(first, second) as client:
        names: list[tuple[str, ...]] = []
        asking = threading.Thread(target=lambda: names.append(client.voices()))
        asking.start()
        first.wait_for(ListVoices)
        first.stop()
        asking.join()
        assert names == [("b",)]


def test_a_request_that_was_choosing_its_voice_chooses_among_those_of_the_next_broker() -> None:
    first, second = FakeBroker(script={ListVoices: silent}), FakeBroker(voices=("b",))
    with two(first, second) as client:
        synthesis = client.synthesize("Hello.")
        first.wait_for(ListVoices)
        first.stop()
        assert len(synthesis.audio()) == 4 * 480
        assert second.wait_for(Synth).voice == "b"


def test_a_request_that_the_lost_broker_had_not_stored_is_sent_again_with_its_prompt() -> None:
    first, second = FakeBroker(script={Synth: silent}), FakeBroker()
    with two(first, second) as client:
        synthesis = client.synthesize("Hello.", prompt=b"RIFF", seed=5)
        first.wait_for(Synth)
        first.stop()
        audio = synthesis.audio()
        again = second.wait_for(Synth)
        np.testing.assert_array_equal(audio, expected(again, 4))
        assert again == first.wait_for(Synth)
        assert second.wait_for(Resume).accepted is False


def test_a_request_that_was_accepted_and_is_unknown_to_the_next_broker_fails() -> None:
    first, second = FakeBroker(script={Synth: accept_only}), FakeBroker()
    with two(first, second) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        assert synthesis.sample_rate == RATE
        first.stop()
        with pytest.raises(UnknownRequest):
            synthesis.audio()
        assert second.all(Synth) == []


def test_a_client_goes_round_its_list_as_brokers_come_and_go(tmp_path: Path) -> None:
    endpoints = [f"ipc://{tmp_path}/{name}" for name in ("a", "b")]
    first = FakeBroker(endpoints[0], script={Synth: begin_only})
    with first, Client(endpoints) as client:
        synthesis = client.synthesize("Hello.", voice="heart", seed=5)
        heard = [next(synthesis), next(synthesis)]
        one_more = begin_only_from(first, 3)
        with FakeBroker(endpoints[1], script={Resume: one_more}):
            first.stop()
            heard.append(next(synthesis))
        with FakeBroker(endpoints[0], chunks=6, script={Resume: going_on_from(first)}):
            audio = np.concatenate([*heard, synthesis.audio()])
    np.testing.assert_array_equal(audio, expected(first.wait_for(Synth), 6))


def begin_only_from(first: FakeBroker, end: int) -> Handler:
    """A handler that goes on with the chunks before number `end`, and then sends no more."""

    def handler(broker: FakeBroker, peer: bytes, message: Resume) -> None:
        broker.chunks = 10 * end
        going_on_from(first)(broker, peer, replace(message, credit=end - message.seq))

    return handler


def test_what_was_still_to_be_sent_to_one_broker_is_not_sent_to_the_next() -> None:
    first, second = FakeBroker(), FakeBroker(voices=("b",))
    with two(first, second) as client:
        client.voices()
        loop = client._loop

        def leave_with_something_unsent() -> None:
            loop._outbox.append(encode(Cancel("a request of the first")))
            loop._connect(second.endpoint)

        loop._reactor.post(leave_with_something_unsent)
        while client.voices() != ("b",):
            pass
        assert (type(second.received[0]), second.all(Cancel)) == (Hello, [])


# ---- a broker that stops answering ----


def test_a_stream_goes_on_elsewhere_when_its_broker_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.connection.AMONG_OTHERS", Patience(0.1, 0.3))
    first = FakeBroker(script={Synth: begin_only})
    second = FakeBroker(chunks=6, script={Resume: going_on_from(first)})
    go_on = threading.Event()
    with two(first, second) as client:
        synthesis = client.synthesize("Hello.", voice="heart", seed=5)
        heard = next(synthesis)
        first.do(go_on.wait)
        audio = np.concatenate([heard, synthesis.audio()])
        go_on.set()
    np.testing.assert_array_equal(audio, expected(first.wait_for(Synth), 6))


def test_what_a_broker_says_after_it_was_given_up_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.connection.ALONE", Patience(0.1, 0.3))
    go_on = threading.Event()

    def hang_and_repeat(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        begin_only(broker, peer, message)
        broker.do(go_on.wait)
        broker.do(lambda: begin_only(broker, peer, message))

    broker = FakeBroker(chunks=6, script={Synth: hang_and_repeat})
    broker._handlers[Resume] = going_on_from(broker)
    with broker, Client(broker.endpoint, connect_timeout=10.0) as client:
        synthesis = client.synthesize("Hello.", voice="heart", seed=5)
        heard = [next(synthesis), next(synthesis)]
        threading.Timer(0.6, go_on.set).start()
        audio = np.concatenate([*heard, synthesis.audio()])
    np.testing.assert_array_equal(audio, expected(broker.wait_for(Synth), 6))


def test_a_stopped_broker_process_is_noticed_by_its_connection() -> None:
    program = (
        "from tests.client.fake_broker import *\n"
        "broker = FakeBroker(script={Synth: begin_only})\n"
        "print(broker.endpoint, flush=True)\n"
        "broker._thread.join()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            with FakeBroker() as second, Client([process.stdout.readline().strip(), second.endpoint]) as client:
                synthesis = client.synthesize("Hello.", voice="heart")
                next(synthesis)
                process.send_signal(signal.SIGSTOP)
                assert second.wait_for(Resume).request_id == synthesis.request_id
        finally:
            process.kill()


# ---- a broker that does not let the client in ----


def guarded(keys: Keyring, endpoint: str) -> Sockets:
    """A broker that wants keys, and never gets to hear a client without."""
    sockets = Sockets(security=Guard(keys.broker, lambda *refusal: None))
    sockets.router(endpoint, Domain.CLIENTS)
    return sockets


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("alone", [True, False])
def test_a_mismatched_broker_is_tried_again_until_it_lets_the_client_in(
    tmp_path: Path, gone: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_S", "LONGEST_S"):
        monkeypatch.setattr(f"lighttts.client.brokers.{name}", 0.2)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Client(endpoint if alone else [endpoint, gone], connect_timeout=3.0) as client:
        with guarded(Keyring(tmp_path), endpoint), pytest.raises(AccessDenied, match=f"the broker at {endpoint} does"):
            client.voices()
        with FakeBroker(endpoint):
            assert client.voices() == ("heart", "june")


# ---- an older broker ----


def test_a_broker_of_the_version_before_is_spoken_to_in_that() -> None:
    with FakeBroker(version=OLDEST) as broker, Client(broker.endpoint) as client:
        np.testing.assert_array_equal(client.synthesize("Hello.").audio(), expected(broker.wait_for(Synth), 4))
        assert len(broker.all(Hello)) == 1


def test_each_new_connection_begins_with_the_newest_version(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/b"
    greetings: list[int] = []

    class Noting(FakeBroker):
        def _receive(self, peer: bytes, frames: list[bytes]) -> None:
            if isinstance(decode(frames), Hello):
                greetings.append(version_of(frames))
            super()._receive(peer, frames)

    with Client(endpoint, connect_timeout=10.0) as client:
        for version in (OLDEST, OLDEST + 1):
            with Noting(endpoint, version=version) as broker:
                client.voices()
                broker.wait_for(Hello)
    assert greetings == [OLDEST + 1, OLDEST, OLDEST + 1]
