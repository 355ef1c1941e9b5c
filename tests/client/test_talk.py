"""Text that is still being written, from the caller's side."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest

from lighttts.client import AsyncClient, AsyncSynthesis, AsyncTalk, Client
from lighttts.errors import Cancelled, InvalidInput, ProtocolError, Unavailable
from lighttts.transport.wire import TEXT_WINDOW, Cancel, Error, Finish, Flush, Piece, Resume, Synth, Written
from tests.client.fake_broker import RATE, FakeBroker, accept_only, chunk_of


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client(broker.endpoint) as connected:
        yield connected


def written(broker: FakeBroker) -> str:
    """What has come of texts, `|` for each flush and `.` for each end."""
    said = [message for message in broker.received if isinstance(message, Piece | Flush | Finish)]
    return "".join(m.text if isinstance(m, Piece) else "|" if isinstance(m, Flush) else "." for m in said)


def test_text_is_written_while_its_speech_is_read(broker: FakeBroker, client: Client) -> None:
    with client.talk(voice="june", seed=5, method="interleaved") as speech:
        speech.write("Hel")
        speech.write("lo. ")
        speech.flush()
        asked = broker.wait_for(Synth)
        assert (asked.text, asked.pieces, asked.voice) == ("", "interleaved", "june")
        assert speech.sample_rate == RATE
        broker.wait_for(Flush)
        speech.write("More.")
        speech.end()
        speech.end()
        chunks = [*speech]
    broker.wait_for(Finish)
    assert written(broker) == "Hello. |More.."
    assert all((a == chunk_of(asked, n)).all() for n, a in enumerate(chunks))


def test_the_first_voice_is_chosen_before_anything_is_said(broker: FakeBroker, client: Client) -> None:
    speech = client.talk()
    speech.write("Hello.")
    speech.end()
    assert len(speech.audio())
    assert broker.wait_for(Synth).voice == "heart"
    assert [type(m) for m in broker.received if isinstance(m, Synth | Piece)] == [Synth, Piece]


def test_after_the_end_there_is_no_more_to_write(client: Client) -> None:
    speech = client.talk("june")
    speech.end()
    for say in (lambda: speech.write("x"), speech.flush):
        with pytest.raises(InvalidInput):
            say()


def test_text_that_is_no_unicode_is_refused(client: Client) -> None:
    with pytest.raises(InvalidInput, match="Unicode"):
        client.talk("june").write("\ud800")


def test_who_writes_more_than_is_spoken_waits() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint) as client:
        speech = client.talk("june")
        written_all = threading.Event()

        def write() -> None:
            speech.write("x" * (3 * TEXT_WINDOW))
            written_all.set()

        threading.Thread(target=write, daemon=True).start()
        broker.wait_for(Piece, 8)
        assert not written_all.is_set()
        assert len(written(broker)) == TEXT_WINDOW
        _grant(broker, speech.request_id, 2 * TEXT_WINDOW)
        _grant(broker, speech.request_id, 3 * TEXT_WINDOW)
        assert written_all.wait(10)
        broker.wait_for(Piece, 24)


def _grant(broker: FakeBroker, request_id: str, limit: int) -> None:
    peer = broker.peers[request_id]
    broker.do(lambda: broker.send(peer, Written(request_id, limit)))


def test_who_waits_to_write_is_told_when_it_fails() -> None:
    with FakeBroker(script={Synth: accept_only}) as broker, Client(broker.endpoint) as client:
        speech = client.talk("june")
        threading.Timer(0.0, lambda: _fail(broker, speech.request_id)).start()
        with pytest.raises(Unavailable, match="broke"):
            speech.write("x" * (9 * TEXT_WINDOW))
        with pytest.raises(Unavailable, match="broke"):
            speech.audio()


def _fail(broker: FakeBroker, request_id: str) -> None:
    broker.wait_for(Piece, 4)
    peer = broker.peers[request_id]
    broker.do(lambda: broker.send(peer, Error(request_id, "unavailable", "broke", "", True, 0)))


def test_closing_cancels_and_whoever_writes_is_told(broker: FakeBroker, client: Client) -> None:
    with client.talk("june") as speech:
        speech.write("Hello")
        broker.wait_for(Piece)
    broker.wait_for(Cancel)
    with pytest.raises(Cancelled):
        speech.write("x" * (9 * TEXT_WINDOW))


def test_one_that_is_dropped_is_cancelled(broker: FakeBroker, client: Client) -> None:
    speech = client.talk("june")
    speech.write("Hello")
    broker.wait_for(Piece)
    del speech
    gc.collect()
    broker.wait_for(Cancel)


def test_a_lost_connection_ends_it(broker: FakeBroker, client: Client) -> None:
    speech = client.talk("june")
    speech.write("Hello")
    broker.wait_for(Piece)
    broker.stop()
    with pytest.raises(Unavailable) as caught:
        speech.audio()
    assert caught.value.retryable
    assert not broker.all(Resume)


def test_an_older_broker_is_not_asked() -> None:
    with FakeBroker(version=2) as broker, Client(broker.endpoint) as client:
        with pytest.raises(ProtocolError, match="upgrade"):
            client.talk("june").audio()
        assert not broker.all(Synth)


def test_a_caller_who_takes_time_to_write_is_not_late(broker: FakeBroker) -> None:
    with Client(broker.endpoint, timeout=0.3) as client:
        speech = client.talk("june")
        assert speech.sample_rate
        time.sleep(0.6)
        speech.end()
        assert len(speech.audio())


# ---- pieces of an iterable -------------------------------------------------------------------------------------------


def test_pieces_of_an_iterable_are_spoken(broker: FakeBroker, client: Client) -> None:
    speech = client.synthesize((word + " " for word in ["how", "are", "you"]), voice="june", seed=2)
    assert len(speech.audio()) == 4 * 480
    broker.wait_for(Finish)
    assert written(broker) == "how are you ."
    assert broker.wait_for(Synth).pieces == "auto"


def test_what_the_iterable_raises_is_told_to_the_reader(broker: FakeBroker, client: Client) -> None:
    def pieces() -> Iterator[str]:
        yield "one"
        broker.wait_for(Piece)
        raise ZeroDivisionError("no words left")

    with pytest.raises(InvalidInput, match="no words left") as caught:
        client.synthesize(pieces(), voice="june").audio()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    broker.wait_for(Cancel)


def test_pieces_cannot_be_asked_for_again(client: Client) -> None:
    with pytest.raises(InvalidInput, match="retries"):
        client.synthesize(iter(["a"]), retries=1)


# ---- asyncio ---------------------------------------------------------------------------------------------------------


def test_tasks_write_and_read(broker: FakeBroker) -> None:
    async def run() -> tuple[int, np.ndarray]:
        async with AsyncClient(broker.endpoint) as client, client.talk("june", seed=3) as speech:
            rate = await speech.sample_rate()
            reading = asyncio.create_task(speech.audio())
            await speech.write("Hello.")
            speech.flush()
            speech.end()
            with pytest.raises(InvalidInput):
                await speech.write("x")
            return rate, await reading

    rate, audio = asyncio.run(run())
    broker.wait_for(Finish)
    assert (rate, len(audio), written(broker)) == (RATE, 4 * 480, "Hello.|.")


def test_pieces_may_come_asynchronously(broker: FakeBroker) -> None:
    async def words() -> AsyncIterator[str]:
        for word in ("how ", "are"):
            await asyncio.sleep(0)
            yield word

    async def run() -> None:
        async with AsyncClient(broker.endpoint) as client:
            assert len(await client.synthesize(words(), voice="june").audio())
            assert len(await client.synthesize(["a", "b"], voice="june").audio())

    asyncio.run(run())
    broker.wait_for(Finish, 2)
    assert written(broker) == "how are.ab."


def test_a_task_that_waits_to_write_goes_on_or_is_told() -> None:
    async def run(broker: FakeBroker) -> None:
        async with AsyncClient(broker.endpoint) as client, client.talk("june") as speech:
            writing = asyncio.create_task(speech.write("x" * (3 * TEXT_WINDOW)))
            await asyncio.to_thread(broker.wait_for, Piece, 8)
            assert not writing.done()
            _grant(broker, speech.request_id, 2 * TEXT_WINDOW)
            await writing
            writing = asyncio.create_task(speech.write("x" * (2 * TEXT_WINDOW)))
            await asyncio.sleep(0)
            speech.close()
            with pytest.raises(Cancelled):
                await writing

    with FakeBroker(script={Synth: accept_only}) as broker:
        asyncio.run(run(broker))


def test_an_asynchronous_iterable_that_fails_ends_it(broker: FakeBroker) -> None:
    async def words() -> AsyncIterator[str]:
        yield "one"
        await asyncio.to_thread(broker.wait_for, Piece)
        raise ZeroDivisionError("no words left")

    async def run() -> None:
        async with AsyncClient(broker.endpoint) as client:
            with pytest.raises(InvalidInput, match="no words left"):
                await client.synthesize(words(), voice="june").audio()

    asyncio.run(run())
    assert broker.wait_for(Cancel)


@pytest.mark.parametrize("leave", [AsyncTalk.close, AsyncTalk.cancel])
def test_closing_ends_the_task_that_runs_through_the_pieces(
    broker: FakeBroker, leave: Callable[[AsyncSynthesis], None]
) -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def words() -> AsyncIterator[str]:
            try:
                yield "one"
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with AsyncClient(broker.endpoint) as client:
            speech = client.synthesize(words(), voice="june")
            await asyncio.to_thread(broker.wait_for, Piece)
            leave(speech)
            await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(run())
    broker.wait_for(Cancel)
