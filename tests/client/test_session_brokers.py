"""The client's core with several brokers, older ones, and those that have forgotten a request."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from lighttts.client.events import Arrived, Finished, Started
from lighttts.client.session import WINDOW
from lighttts.client.silence import AMONG_OTHERS
from lighttts.errors import (
    ConfigError,
    NoWorker,
    Overloaded,
    ProtocolError,
    UnknownRequest,
)
from lighttts.transport.schema import Buffer
from lighttts.transport.wire import (
    OLDEST,
    VERSION,
    Accepted,
    Convert,
    End,
    EndAck,
    Error,
    Hello,
    ListVoices,
    Message,
    Resume,
    SpeechRequest,
    Synth,
    Voices,
    Welcome,
    encode,
)
from tests.client.bench import HELLO, TIMEOUTS, WELCOME, Bench, synth
from tests.client.fake_broker import RATE, frame_of

# ---- several brokers ----


A, B = "tcp://a:1", "tcp://b:1"


def moved(bench: Bench, *messages: Message) -> None:
    """The connection to the next broker is made, and it answers."""
    bench.session.connection.made(bench.now)
    bench.receive(WELCOME, *messages)


def test_over_a_lost_connection_requests_go_on_at_the_next_broker() -> None:
    bench = Bench(A, B)
    bench.streaming(synth())
    bench.receive(frame_of(synth(), 0))
    bench.session.disconnected(bench.now)
    assert (bench.take_sent(), bench.connects) == ([], [B])
    moved(bench)
    assert bench.take_sent() == [HELLO, Resume("r1", True, 1, 480, WINDOW - 1)]


def test_questions_are_asked_again_at_the_next_broker_until_their_time_is_up() -> None:
    bench = Bench(A, B)
    bench.session.query(ListVoices, 5, bench.now)
    bench.pass_time(TIMEOUTS.connect - 1)
    bench.session.disconnected(bench.now)
    bench.take_sent()
    moved(bench)
    assert bench.take_sent() == [HELLO, ListVoices(5)]
    bench.pass_time(1.1)
    assert f"{A} or {B}" in bench.error(5).text


def test_a_request_that_was_choosing_its_voice_waits_for_the_next_broker_and_asks_that() -> None:
    bench = Bench(A, B)
    bench.open(synth(voice=""))
    (query,) = bench.take_sent()
    bench.session.disconnected(bench.now)
    bench.pass_time(TIMEOUTS.connect - 0.1)
    moved(bench)
    _, again = bench.take_sent()
    assert isinstance(query, ListVoices)
    assert isinstance(again, ListVoices)
    bench.receive(Voices(query.query_id, RATE, ("old",)), Voices(again.query_id, RATE, ("new",)))
    (sent,) = bench.take_sent()
    assert isinstance(sent, Synth)
    assert sent.voice == "new"


def test_a_silent_broker_is_left_for_the_next_and_what_it_says_then_is_not_heard() -> None:
    bench = Bench(A, B)
    bench.streaming(synth())
    bench.pass_time(AMONG_OTHERS.greet + 0.1)
    assert bench.take_sent() == [HELLO]
    bench.now += AMONG_OTHERS.lost
    bench.session.tick(bench.now)
    bench.session.received(encode(frame_of(synth(), 0)), bench.now)
    bench.session.connection.made(bench.now)
    bench.session.disconnected(bench.now)
    assert bench.take_sent() == []
    assert bench.connects == [B]
    moved(bench)
    assert bench.take_sent() == [HELLO, Resume("r1", True, 0, 0, WINDOW)]


def test_requests_are_not_sent_to_a_broker_that_is_passed_over() -> None:
    bench = Bench(A, B, connected=False)
    bench.open(synth())
    bench.session.connection.made(bench.now)
    bench.receive(Welcome("b", "b/1", 20_000, 256, ready=False))
    assert (bench.take_sent(), bench.connects) == ([HELLO], [B])
    moved(bench)
    assert [type(message) for message in bench.take_sent()] == [Hello, Synth]


def test_a_broker_that_loses_its_workers_later_keeps_its_requests() -> None:
    bench = Bench(A, B)
    bench.streaming(synth())
    bench.receive(Welcome("b", "b/1", 20_000, 256, ready=False))
    assert (bench.take_sent(), bench.connects) == ([], [])


def test_all_brokers_have_their_turn_while_requests_wait() -> None:
    bench = Bench(A, B, connected=False)
    bench.open(synth())
    bench.pass_time(TIMEOUTS.connect + 0.1)
    assert bench.connects[:2] == [B, A]
    assert f"no broker answers at {A} or {B}" in bench.error().text


def test_a_connection_that_cannot_be_opened_ends_what_waits_for_it_and_the_next_broker_has_its_turn() -> None:
    bench = Bench(A, B, connected=False)
    bench.open(synth())
    bench.session.unopened(ConfigError("no such key"), bench.now)
    bench.pass_time(1.0)
    assert isinstance(bench.error(), ConfigError)
    assert bench.connects == [B]


def test_after_a_request_failed_for_want_of_workers_the_others_go_on_at_the_next_broker() -> None:
    bench = Bench(A, B)
    bench.streaming(synth())
    bench.open(replace(synth(), request_id="r2"))
    bench.take_sent()
    bench.receive(Error("r2", "no_worker", "no llm worker is connected", "", True, 0), frame_of(synth(), 0))
    assert isinstance(bench.error("r2"), NoWorker)
    assert bench.connects == [B]
    moved(bench)
    assert bench.take_sent()[-1] == Resume("r1", True, 0, 0, WINDOW)


def ask_for_voices(bench: Bench, *names: str) -> None:
    """The broker is asked for its voices, and answers."""
    query = bench.take_sent()[-1]
    assert isinstance(query, ListVoices)
    bench.receive(Voices(query.query_id, RATE, names))


def test_a_request_chooses_a_voice_of_the_next_broker_if_one_has_none() -> None:
    bench = Bench(A, B)
    bench.open(synth(voice=""))
    ask_for_voices(bench)
    assert bench.connects == [B]
    moved(bench)
    ask_for_voices(bench, "june")
    assert [type(message) for message in bench.take_sent()] == [Synth]


def test_a_request_fails_if_the_next_broker_has_no_voice_either() -> None:
    bench = Bench(A, B)
    bench.open(synth(voice=""))
    ask_for_voices(bench)
    moved(bench)
    ask_for_voices(bench)
    assert isinstance(bench.error(), NoWorker)
    assert bench.connects == [B]


# ---- requests that were perhaps never stored ----


def sent_again(bench: Bench) -> list[Message]:
    """What is sent over a new connection whose broker knows nothing of the request."""
    bench.session.disconnected(bench.now)
    bench.take_sent()
    moved(bench, Error("r1", "unknown_request", "send it again", "", True, 0))
    return bench.take_sent()[2:]


def test_a_request_that_was_never_accepted_is_sent_again_once_a_connection_if_nobody_knows_it() -> None:
    bench = Bench()
    bench.open(synth())
    asked = bench.take_sent()
    for _ in range(2):
        assert sent_again(bench) == asked
    bench.receive(Error("r1", "unknown_request", "send it again", "", True, 0))
    assert isinstance(bench.error(), UnknownRequest)


def test_a_request_sent_again_runs_its_course() -> None:
    bench = Bench()
    bench.open(synth())
    sent_again(bench)
    bench.receive(Accepted("r1", RATE), frame_of(synth(), 0), End("r1", 1, 25, 1))
    assert [type(event) for event in bench.events["r1"]] == [Started, Arrived, Finished]


def test_a_request_sent_again_asks_for_the_voice_that_was_chosen() -> None:
    bench = Bench()
    bench.open(synth(voice=""))
    (query,) = bench.take_sent()
    assert isinstance(query, ListVoices)
    bench.receive(Voices(query.query_id, RATE, ("june",)))
    asked = bench.take_sent()
    assert sent_again(bench) == asked


def test_a_request_that_was_accepted_is_not_sent_again() -> None:
    bench = Bench()
    bench.streaming(synth())
    assert sent_again(bench) == [EndAck("r1")]
    assert isinstance(bench.error(), UnknownRequest)


def test_another_error_of_a_request_that_goes_on_is_its_end() -> None:
    bench = Bench()
    bench.open(synth())
    bench.session.disconnected(bench.now)
    moved(bench, Error("r1", "overloaded", "full", "", True, 0))
    assert isinstance(bench.error(), Overloaded)


def test_nothing_is_sent_again_of_a_request_that_was_cancelled() -> None:
    bench = Bench()
    bench.open(synth())
    bench.session.disconnected(bench.now)
    moved(bench)
    bench.session.cancel("r1", bench.now)
    bench.take_sent()
    bench.receive(Error("r1", "unknown_request", "send it again", "", True, 0))
    assert bench.take_sent() == [EndAck("r1")]


def test_the_prompt_is_kept_until_the_request_is_accepted_and_no_longer() -> None:
    bench = Bench()
    prompt = bytes(1000)
    before = sys.getrefcount(prompt)
    bench.open(replace(synth(voice=""), prompt=prompt))
    bench.take_sent()
    assert sys.getrefcount(prompt) > before
    bench.receive(Accepted("r1", RATE))
    assert sys.getrefcount(prompt) == before


# ---- protocol versions ----


def refusal(version: int) -> list[Buffer]:
    return encode(Error("", "protocol", "upgrade one of us", "", False, 0), version)


def test_a_broker_that_answers_hello_in_an_older_version_is_greeted_in_that() -> None:
    bench = Bench(connected=False)
    bench.open(synth())
    bench.session.connection.made(bench.now)
    assert bench.session.connection.version == VERSION
    bench.session.received(refusal(OLDEST), bench.now)
    assert bench.take_sent() == [HELLO, HELLO]
    assert bench.session.connection.version == OLDEST
    bench.session.received(encode(WELCOME, OLDEST), bench.now)
    assert [type(message) for message in bench.take_sent()] == [Synth]
    bench.session.disconnected(bench.now)
    bench.session.connection.made(bench.now)
    assert bench.session.connection.version == VERSION


def test_a_broker_that_refuses_the_older_version_too_fails_those_who_wait() -> None:
    bench = Bench(connected=False)
    bench.open(synth())
    bench.session.connection.made(bench.now)
    for _ in range(2):
        bench.session.received(refusal(OLDEST), bench.now)
    bench.take_sent()
    assert "upgrade one of us" in bench.error().text


def older() -> Bench:
    """A client whose broker speaks the version before."""
    bench = Bench(connected=False)
    bench.session.connection.made(bench.now)
    bench.session.received(refusal(OLDEST), bench.now)
    bench.session.received(encode(WELCOME, OLDEST), bench.now)
    bench.take_sent()
    return bench


CONVERT = Convert("r1", "heart", 7, 1.0, "audio", "f32", 0, 0, b"", b"RIFF")


@pytest.mark.parametrize(
    "asked",
    [replace(synth("heart"), instruct="in a whisper"), replace(synth(""), instruct="in a whisper"), CONVERT],
    ids=["instruct", "instruct, any voice", "conversion"],
)
def test_what_an_older_broker_does_not_know_is_an_error_and_is_not_asked_for(asked: SpeechRequest) -> None:
    bench = older()
    bench.open(asked)
    bench.receive(*(Voices(message.query_id, 24000, ("heart",)) for message in bench.take_sent()))
    assert bench.take_sent() == []
    assert isinstance(bench.error(), ProtocolError)
    assert "upgrade it" in bench.error().text


def test_a_request_that_goes_on_at_an_older_broker_is_not_sent_again_without_what_that_does_not_know() -> None:
    bench = Bench()
    bench.open(replace(synth(), instruct="in a whisper"))
    bench.session.disconnected(bench.now)
    bench.session.connection.made(bench.now)
    bench.session.received(refusal(OLDEST), bench.now)
    bench.session.received(encode(WELCOME, OLDEST), bench.now)
    bench.take_sent()
    bench.receive(Error("r1", "unknown_request", "send it again", "", True, 0))
    assert not any(isinstance(message, Synth) for message in bench.take_sent())
    assert isinstance(bench.error(), ProtocolError)


def test_an_error_of_an_older_version_after_the_greeting_changes_no_version() -> None:
    bench = Bench()
    bench.session.received(refusal(OLDEST), bench.now)
    assert bench.session.connection.version == VERSION
