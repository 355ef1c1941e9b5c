"""The blocking client against a broker of real sockets."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.client.session import WINDOW
from lighttts.client.silence import Patience
from lighttts.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    LightTTSError,
    Overloaded,
    ProtocolError,
    Unavailable,
    UnknownVoice,
)
from lighttts.transport.wire import Accepted, Cancel, Convert, EndAck, Hello, ListVoices, Synth
from tests.client.fake_broker import (
    RATE,
    FakeBroker,
    Handler,
    accept_only,
    chunk_of,
    frame_of,
    refuse,
    serve,
    silent,
)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        yield broker


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client(broker.endpoint) as client:
        yield client


def expected(request: Synth, chunks: int) -> np.ndarray:
    return np.concatenate([chunk_of(request, number) for number in range(chunks)])


# ---- what comes out ----


def test_iterating_yields_the_chunks_as_they_were_made(broker: FakeBroker, client: Client) -> None:
    chunks = [*client.synthesize("Hello.", seed=5)]
    request = broker.wait_for(Synth)
    assert len(chunks) == 4
    for number, chunk in enumerate(chunks):
        np.testing.assert_array_equal(chunk, chunk_of(request, number))


@pytest.mark.parametrize(
    ("options", "dtype", "shape"),
    [
        ({}, np.float32, (4 * 480,)),
        ({"format": "s16"}, np.int16, (4 * 480,)),
        ({"output": "mel"}, np.float32, (4 * 50, 80)),
        ({"output": "tokens"}, np.int32, (4 * 25,)),
    ],
)
def test_audio_collects_everything_in_the_form_that_was_asked_for(
    broker: FakeBroker, client: Client, options: dict[str, str], dtype: type, shape: tuple[int, ...]
) -> None:
    result = client.synthesize("Hello.", seed=5, **options).audio()
    assert (result.dtype, result.shape) == (dtype, shape)
    np.testing.assert_array_equal(result, expected(broker.wait_for(Synth), 4).astype(dtype))


def test_audio_after_some_chunks_collects_the_rest(broker: FakeBroker, client: Client) -> None:
    synthesis = client.synthesize("Hello.", seed=5)
    first = next(synthesis)
    rest = synthesis.audio()
    np.testing.assert_array_equal(np.concatenate([first, rest]), expected(broker.wait_for(Synth), 4))
    assert synthesis.audio().shape == (0,)


def test_the_request_carries_what_was_asked_for(broker: FakeBroker, client: Client) -> None:
    client.synthesize(
        "Grüße.", prompt=b"RIFF", prompt_text="spoken", seed=9, speed=1.25, output="mel", deadline=2.0005
    ).audio()
    request = broker.wait_for(Synth)
    assert (request.text, request.voice, bytes(request.prompt)) == ("Grüße.", "", b"RIFF")
    assert (request.prompt_text, request.seed, request.speed) == ("spoken", 9, 1.25)
    assert (request.output, request.deadline_ms) == ("mel", 2001)


def test_a_conversion_yields_its_chunks_as_they_were_made(broker: FakeBroker, client: Client) -> None:
    chunks = [*client.convert(b"RIFF....", voice="june", seed=5)]
    request = broker.wait_for(Convert)
    assert (request.source, request.voice, request.seed) == (b"RIFF....", "june", 5)
    assert len(chunks) == 4
    for number, chunk in enumerate(chunks):
        np.testing.assert_array_equal(chunk, chunk_of(request, number))


def test_a_conversion_without_voice_or_prompt_is_in_the_brokers_first_voice(broker: FakeBroker, client: Client) -> None:
    client.convert(b"RIFF....").audio()
    assert broker.wait_for(Convert).voice == "heart"


def test_a_conversion_is_retried_and_cancelled_like_a_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.retry.FIRST_S", 0.01)
    full = refuse("overloaded", "full", retryable=True, retry_after_ms=1)
    with FakeBroker(script={Convert: full}) as broker, Client(broker.endpoint) as client:
        with pytest.raises(Overloaded):
            client.convert(b"RIFF....", voice="june", retries=2).audio()
        assert len(broker.all(Convert)) == 3
    with FakeBroker(script={Convert: accept_only}) as broker, Client(broker.endpoint) as client:
        conversion = client.convert(b"RIFF....", voice="june")
        assert conversion.sample_rate == RATE
        conversion.close()
        assert broker.wait_for(Cancel).request_id == conversion.request_id


def test_progress_is_told_on_the_way(broker: FakeBroker, client: Client) -> None:
    synthesis = client.synthesize("Hello.", voice="june")
    assert synthesis.sample_rate == RATE
    assert synthesis.tokens == 0
    next(synthesis)
    assert synthesis.tokens == 25
    synthesis.audio()
    assert synthesis.tokens == 100
    request = broker.wait_for(Synth)
    assert (request.request_id, request.seed) == (synthesis.request_id, synthesis.seed)


def test_requests_without_a_seed_have_different_ones(client: Client) -> None:
    assert client.synthesize("Hello.").seed != client.synthesize("Hello.").seed


def test_a_request_without_voice_uses_the_brokers_first(broker: FakeBroker, client: Client) -> None:
    client.synthesize("Hello.").audio()
    assert broker.wait_for(Synth).voice == "heart"


def test_every_finished_request_is_acknowledged(broker: FakeBroker, client: Client) -> None:
    synthesis = client.synthesize("Hello.")
    synthesis.audio()
    assert broker.wait_for(EndAck).request_id == synthesis.request_id


def test_voices_and_status(client: Client) -> None:
    assert client.voices() == ("heart", "june")
    status = client.status()
    assert [worker.stage for worker in status.workers] == ["encode", "llm", "decode"]


def test_many_requests_from_many_threads_do_not_mix(broker: FakeBroker, client: Client) -> None:
    broker.chunks = 100
    results: dict[int, np.ndarray] = {}

    def speak(seed: int) -> None:
        mine, other = client.synthesize("Hello.", seed=seed), client.synthesize("Hello.", seed=seed + 100)
        parts = list(zip(mine, other, strict=True))
        results[seed] = np.concatenate([first for first, _ in parts])
        results[seed + 100] = np.concatenate([second for _, second in parts])

    threads = [threading.Thread(target=speak, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    for request in broker.all(Synth):
        np.testing.assert_array_equal(results[request.seed], expected(request, 100))


# ---- credit ----


def test_an_unread_stream_stops_the_broker_and_reading_moves_it_on(broker: FakeBroker, client: Client) -> None:
    broker.chunks = 10 * WINDOW
    synthesis = client.synthesize("Hello.", voice="heart")
    assert synthesis.sample_rate == RATE
    broker.wait_for(Synth)
    # A second request completes meanwhile: whatever the broker would still send for the first has been sent by then.
    broker.chunks = 1
    client.synthesize("Hello.", voice="heart").audio()
    broker.chunks = 10 * WINDOW
    assert broker.serving[synthesis.request_id].sent == WINDOW
    assert len(synthesis.audio()) == 10 * WINDOW * 480


# ---- errors ----


def test_typed_errors_are_raised_where_chunks_are_read_and_again_on_the_next_read() -> None:
    with (
        FakeBroker(script={Synth: refuse("unknown_voice", "no voice nobody", field="voice")}) as broker,
        Client(broker.endpoint) as client,
    ):
        synthesis = client.synthesize("Hello.", voice="nobody")
        for _ in range(2):
            with pytest.raises(UnknownVoice, match="no voice nobody") as caught:
                next(synthesis)
            assert caught.value.field == "voice"
        with pytest.raises(UnknownVoice):
            _ = synthesis.sample_rate


def test_overload_says_when_to_come_back() -> None:
    with (
        FakeBroker(script={Synth: refuse("overloaded", "full", retryable=True, retry_after_ms=250)}) as broker,
        Client(broker.endpoint) as client,
    ):
        with pytest.raises(Overloaded) as caught:
            client.synthesize("Hello.", voice="heart").audio()
        assert (caught.value.retryable, caught.value.retry_after) == (True, 0.25)


def full_at_first(times: int) -> Handler:
    """Refuses so many requests, then serves."""
    left = iter(range(times))

    def handler(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        busy = next(left, None) is not None
        (refuse("overloaded", "full", retryable=True, retry_after_ms=1) if busy else serve)(broker, peer, message)

    return handler


def test_a_request_is_tried_again_as_often_as_the_caller_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.retry.FIRST_S", 0.01)
    with FakeBroker(script={Synth: full_at_first(3)}) as broker, Client(broker.endpoint) as client:
        with pytest.raises(Overloaded):
            client.synthesize("Hello.", voice="heart").audio()
        synthesis = client.synthesize("Hello.", voice="heart", seed=5, retries=2)
        assert synthesis.sample_rate == RATE
        served = broker.wait_for(Synth, 4)
        assert served.seed == 5
        np.testing.assert_array_equal(synthesis.audio(), expected(served, 4))
        assert broker.wait_for(EndAck, 4).request_id == served.request_id == f"{synthesis.request_id}.2"


def test_a_broker_that_comes_back_serves_a_request_that_it_lost(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/b"
    with FakeBroker(endpoint, script={Synth: accept_only}) as broker, Client(endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart", retries=3)
        broker.wait_for(Synth)
        broker.stop()
        with FakeBroker(endpoint):
            assert len(synthesis.audio()) == 4 * 480


def test_the_next_try_waits_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighttts.client.retry.FIRST_S", 0.01)
    monkeypatch.setattr("lighttts.client.connection.ALONE", Patience(1e6, 2e6))
    script = {Synth: full_at_first(1)}
    with FakeBroker(script=script) as broker, Client(broker.endpoint, timeout=1e6, connect_timeout=1e6) as client:
        client.voices()
        synthesis = client.synthesize("Hello.", voice="heart", retries=1)
        assert broker.wait_for(Synth, 2).request_id == f"{synthesis.request_id}.1"


@pytest.mark.parametrize("owner", ["client", "synthesis"])
def test_closing_ends_who_waits_for_the_next_try(owner: str) -> None:
    script = {Synth: refuse("overloaded", "full", retryable=True, retry_after_ms=600_000)}
    with FakeBroker(script=script) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart", retries=1)
        broker.wait_for(EndAck)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(synthesis.audio)
            {"client": client, "synthesis": synthesis}[owner].close()
            with pytest.raises(Cancelled):
                reader.result()


def test_a_negative_number_of_retries_is_invalid(client: Client) -> None:
    with pytest.raises(InvalidInput) as refused:
        client.synthesize("Hello.", retries=-1)
    assert refused.value.field == "retries"


def test_chunks_before_an_error_are_delivered_before_it() -> None:
    def fail_midway(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        accept_only(broker, peer, message)
        broker.send(peer, frame_of(message, 0))
        refuse("worker_failed", "the llm worker vanished")(broker, peer, message)

    with FakeBroker(script={Synth: fail_midway}) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        assert next(synthesis).shape == (480,)
        with pytest.raises(LightTTSError, match="the llm worker vanished"):
            next(synthesis)


def test_a_gap_in_the_frames_is_a_protocol_error_and_the_request_is_cancelled() -> None:
    def skip(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        accept_only(broker, peer, message)
        broker.send(peer, frame_of(message, 1))

    with FakeBroker(script={Synth: skip}) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        with pytest.raises(ProtocolError, match="lost or repeated"):
            synthesis.audio()
        assert broker.wait_for(Cancel).request_id == synthesis.request_id


def test_nothing_listening_is_unavailable_within_the_connect_timeout() -> None:
    with FakeBroker() as gone:
        pass
    with Client(gone.endpoint, connect_timeout=0.2) as client:
        with pytest.raises(Unavailable, match="lighttts-cli up"):
            client.voices()
        with pytest.raises(Unavailable, match=gone.endpoint):
            client.synthesize("Hello.").audio()


def test_a_listener_that_never_answers_is_unavailable_within_the_connect_timeout() -> None:
    with (
        FakeBroker(script={Hello: silent}) as broker,
        Client(broker.endpoint, connect_timeout=0.2) as client,
        pytest.raises(Unavailable, match="no broker answers"),
    ):
        client.status()


def test_a_broker_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/b"
    with Client(endpoint, connect_timeout=10.0) as client:
        synthesis = client.synthesize("Hello.", seed=1)
        with FakeBroker(endpoint) as broker:
            np.testing.assert_array_equal(synthesis.audio(), expected(broker.wait_for(Synth), 4))


def test_a_broker_that_goes_away_mid_stream_is_unavailable() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        assert synthesis.sample_rate == RATE
        broker.stop()
        with pytest.raises(Unavailable, match="was lost"):
            next(synthesis)


def test_a_broker_process_that_is_killed_mid_stream_is_unavailable() -> None:
    program = (
        "from tests.client.fake_broker import *\n"
        "broker = FakeBroker(script={Synth: accept_only})\n"
        "print(broker.endpoint, flush=True)\n"
        "broker._thread.join()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            with Client(process.stdout.readline().strip()) as client:
                synthesis = client.synthesize("Hello.", voice="heart")
                assert synthesis.sample_rate == RATE
                process.send_signal(signal.SIGKILL)
                with pytest.raises(Unavailable, match="was lost"):
                    next(synthesis)
        finally:
            process.kill()


def test_the_same_client_works_again_when_the_broker_is_back(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/b"
    with Client(endpoint, connect_timeout=10.0) as client:
        with FakeBroker(endpoint):
            client.voices()
        with FakeBroker(endpoint, voices=("again",)):
            assert client.voices() == ("again",)


def test_nothing_new_within_the_timeout_is_deadline_exceeded_and_cancels() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded, match="nothing arrived"):
            client.synthesize("Hello.", voice="heart").audio()
        broker.wait_for(Cancel)


def test_the_deadline_ends_a_request_that_the_broker_does_not_end() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint) as client:
        with pytest.raises(DeadlineExceeded, match="deadline"):
            client.synthesize("Hello.", voice="heart", deadline=0.2).audio()
        broker.wait_for(Cancel)


def test_a_wrong_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="tcp://host:port"):
        Client("localhost")


def test_a_broker_of_another_version_is_a_protocol_error() -> None:
    def newer(broker: FakeBroker, peer: bytes, message: Hello) -> None:
        broker.send_raw(peer, [b"LT\x04\x20", b"\x90"])

    with (
        FakeBroker(script={Hello: newer}) as broker,
        Client(broker.endpoint) as client,
        pytest.raises(ProtocolError, match="version 4"),
    ):
        client.voices()


# ---- cancelling ----


def test_leaving_a_with_block_cancels(broker: FakeBroker, client: Client) -> None:
    broker.chunks = 10 * WINDOW
    with client.synthesize("Hello.", voice="heart") as synthesis:
        next(synthesis)
    assert broker.wait_for(Cancel).request_id == synthesis.request_id
    with pytest.raises(Cancelled):
        next(synthesis)


def test_a_loop_that_is_left_cancels_when_nothing_refers_to_the_synthesis(broker: FakeBroker, client: Client) -> None:
    broker.chunks = 10 * WINDOW
    for _ in client.synthesize("Hello.", voice="heart"):
        break
    gc.collect()
    assert broker.wait_for(Cancel).request_id == broker.wait_for(Synth).request_id


def test_cancel_from_another_thread_ends_a_waiting_reader() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        assert synthesis.sample_rate == RATE
        raised: list[LightTTSError] = []

        def read() -> None:
            try:
                next(synthesis)
            except LightTTSError as error:
                raised.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        synthesis.cancel()
        reader.join()
        assert isinstance(raised[0], Cancelled)


def test_closing_a_finished_request_sends_no_cancel(broker: FakeBroker, client: Client) -> None:
    with client.synthesize("Hello.") as synthesis:
        synthesis.audio()
    client.voices()
    assert broker.all(Cancel) == []


def test_closing_the_client_cancels_its_requests_and_refuses_new_ones() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker:
        client = Client(broker.endpoint)
        synthesis = client.synthesize("Hello.", voice="heart")
        assert synthesis.sample_rate == RATE
        client.close()
        client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            next(synthesis)
        broker.wait_for(Cancel)
        with pytest.raises(Unavailable, match="closed"):
            client.synthesize("Hello.")


def test_a_synthesis_keeps_its_client_alive(broker: FakeBroker) -> None:
    synthesis = Client(broker.endpoint).synthesize("Hello.", seed=1)
    gc.collect()
    np.testing.assert_array_equal(synthesis.audio(), expected(broker.wait_for(Synth), 4))


def test_a_dropped_client_ends_its_thread(broker: FakeBroker) -> None:
    client = Client(broker.endpoint)
    client.voices()
    thread = next(thread for thread in threading.enumerate() if thread.name == "lighttts-client")
    del client
    gc.collect()
    thread.join(5.0)
    assert not thread.is_alive()


def test_a_program_that_ends_without_closing_still_cancels_and_exits_cleanly() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker:
        program = (
            "from lighttts.client import Client\n"
            f"client = Client({broker.endpoint!r})\n"
            "synthesis = client.synthesize('Hello.', voice='heart')\n"
            "synthesis.sample_rate"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        broker.wait_for(Cancel)


# ---- robustness ----


def test_a_defect_in_the_io_thread_reaches_everybody_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeBroker(script={Synth: accept_only}) as broker:
        client = Client(broker.endpoint)
        synthesis = client.synthesize("Hello.", voice="heart")
        assert synthesis.sample_rate == RATE

        def defect(*args: object, **named: object) -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(client._loop._session, "query", defect)
        with pytest.raises(LightTTSError, match="a defect"):
            client.voices()
        with pytest.raises(LightTTSError, match="a defect"):
            next(synthesis)
        with pytest.raises(Unavailable):
            client.voices()


def test_a_client_refuses_to_be_used_after_a_fork(client: Client) -> None:
    client.voices()
    child = os.fork()
    if child == 0:
        try:
            client.voices()
        except Unavailable as error:
            os._exit(7 if "spawn" in error.text else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_waiting_program_is_interrupted_by_ctrl_c() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker:
        program = (
            "from lighttts.client import Client\n"
            f"with Client({broker.endpoint!r}) as client, client.synthesize('Hello.', voice='heart') as synthesis:\n"
            "    next(synthesis)"
        )
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
            broker.wait_for(Synth)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in stderr
        broker.wait_for(Cancel)


def test_large_frames_arrive_whole() -> None:
    def one_large(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        broker.send(peer, Accepted(message.request_id, RATE))
        frame = frame_of(message, 0)
        big = np.tile(frame.samples, 4000)
        broker.send(peer, type(frame)(message.request_id, 0, 1, 0, 0, True, 0, 25, big))

    with FakeBroker(script={Synth: one_large}) as broker, Client(broker.endpoint) as client:
        synthesis = client.synthesize("Hello.", voice="heart")
        assert next(synthesis).shape == (480 * 4000,)


def test_closing_without_a_broker_does_not_wait() -> None:
    with FakeBroker() as gone:
        pass
    client = Client(gone.endpoint)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 5.0


def test_the_first_message_introduces_the_client(broker: FakeBroker, client: Client) -> None:
    client.voices()
    broker.wait_for(ListVoices)
    assert isinstance(broker.received[0], Hello)
    assert broker.received[0].software.startswith("lighttts-client/")
    assert isinstance(broker.received[1], ListVoices)
