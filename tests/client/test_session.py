"""The client's core without sockets: what it sends and what it tells its callers, message by message."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.client.events import Answered, Arrived, Failed, Finished, Started
from lighttts.client.intake import GRANT_AFTER
from lighttts.client.session import WINDOW
from lighttts.client.silence import ALONE
from lighttts.client.stream import FORGET_AFTER
from lighttts.errors import (
    AccessDenied,
    Cancelled,
    DeadlineExceeded,
    NoWorker,
    Overloaded,
    ProtocolError,
    Unavailable,
    UnknownRequest,
)
from lighttts.transport.wire import (
    Accepted,
    Audio,
    Cancel,
    Credit,
    End,
    EndAck,
    Error,
    Grant,
    ListVoices,
    Message,
    Resume,
    Synth,
    Voices,
)
from tests.client.bench import HELLO, TIMEOUTS, WELCOME, Bench, synth
from tests.client.fake_broker import RATE, frame_of

# ---- the course of a request ----


def test_a_request_waits_for_the_welcome_and_is_then_sent_with_the_window_as_credit() -> None:
    bench = Bench(connected=False)
    bench.open(synth())
    assert bench.take_sent() == []
    bench.session.connection.made(bench.now)
    assert bench.take_sent() == [HELLO]
    bench.receive(WELCOME)
    (sent,) = bench.take_sent()
    assert isinstance(sent, Synth)
    assert (sent.request_id, sent.voice, sent.credit) == ("r1", "heart", WINDOW)


def test_frames_are_delivered_in_order_and_end_is_acknowledged() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(frame_of(synth(), 0), frame_of(synth(), 1), End("r1", 2, 50, 1))
    started, first, second, finished = bench.events["r1"]
    assert started == Started(RATE)
    assert isinstance(first, Arrived)
    assert isinstance(second, Arrived)
    np.testing.assert_array_equal(first.chunk, frame_of(synth(), 0).samples)
    np.testing.assert_array_equal(second.chunk, frame_of(synth(), 1).samples)
    assert (first.tokens, second.tokens) == (25, 50)
    assert finished == Finished(50)
    assert bench.take_sent() == [EndAck("r1")]


def test_an_error_is_delivered_as_its_class_and_acknowledged() -> None:
    bench = Bench()
    bench.open(synth())
    bench.take_sent()
    bench.receive(Error("r1", "overloaded", "full, come back", "", True, 1500))
    error = bench.error()
    assert isinstance(error, Overloaded)
    assert (error.text, error.retryable, error.retry_after) == ("full, come back", True, 1.5)
    assert bench.take_sent() == [EndAck("r1")]


def test_without_voice_or_prompt_the_brokers_first_voice_is_asked_for() -> None:
    bench = Bench()
    bench.open(synth(voice=""))
    (query,) = bench.take_sent()
    assert isinstance(query, ListVoices)
    bench.receive(Voices(query.query_id, RATE, ("june", "heart")))
    (sent,) = bench.take_sent()
    assert isinstance(sent, Synth)
    assert sent.voice == "june"


def test_without_any_preset_voice_the_request_fails_with_what_to_do() -> None:
    bench = Bench()
    bench.open(synth(voice=""))
    (query,) = bench.take_sent()
    bench.receive(Voices(query.query_id, RATE, ()))
    assert isinstance(bench.error(), NoWorker)
    assert "lighttts-encode" in bench.error().text


def test_a_request_cancelled_while_its_voice_is_chosen_is_never_sent() -> None:
    bench = Bench()
    bench.open(synth(voice=""))
    (query,) = bench.take_sent()
    bench.session.cancel("r1", bench.now)
    bench.receive(Voices(query.query_id, RATE, ("june",)))
    assert bench.take_sent() == []
    assert isinstance(bench.error(), Cancelled)


# ---- credit ----


def test_half_a_window_is_granted_again_when_half_a_window_is_consumed() -> None:
    bench = Bench(max_credit=8)
    bench.streaming(synth())
    bench.receive(*(frame_of(synth(), n) for n in range(8)))
    bench.consume(3)
    assert bench.take_sent() == []
    bench.consume()
    assert bench.take_sent() == [Credit("r1", 4)]


def test_who_takes_chunks_slowly_grants_what_it_took_now_and_then() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(*(frame_of(synth(), n) for n in range(8)))
    bench.consume()
    assert bench.take_sent() == []
    bench.now += GRANT_AFTER
    bench.consume()
    bench.consume()
    assert bench.take_sent() == [Credit("r1", 2)]


def test_the_window_is_what_the_broker_allows_if_that_is_less() -> None:
    bench = Bench(max_credit=3)
    bench.open(synth())
    (sent,) = bench.take_sent()
    assert isinstance(sent, Synth)
    assert sent.credit == 3


def test_a_frame_beyond_the_credit_is_a_protocol_error_so_memory_stays_bounded() -> None:
    bench = Bench(max_credit=2)
    bench.streaming(synth())
    bench.receive(*(frame_of(synth(), n) for n in range(3)))
    assert isinstance(bench.error(), ProtocolError)
    assert "credit" in bench.error().text
    assert bench.take_sent() == [Cancel("r1")]


# ---- order ----


@pytest.mark.parametrize(
    "wrong",
    [
        frame_of(synth(), 1),
        frame_of(synth(), 0, seq=0, first=480),
        frame_of(synth(output="mel"), 0),
        frame_of(synth(sample_type="s16"), 0),
        End("r1", 3, 0, 1),
        Accepted("r1", RATE),
    ],
    ids=["gap", "position", "kind", "dtype", "end-count", "accepted-twice"],
)
def test_a_message_out_of_order_fails_the_request_and_cancels_it(wrong: Message) -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(wrong)
    assert isinstance(bench.error(), ProtocolError)
    assert bench.take_sent() == [Cancel("r1")]


def test_a_repeated_frame_is_a_protocol_error() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(frame_of(synth(), 0), frame_of(synth(), 0))
    assert "lost or repeated" in bench.error().text


@given(st.lists(st.integers(0, 5), max_size=12))
@settings(deadline=None)
def test_whatever_order_frames_come_in_the_caller_gets_a_gapless_prefix_and_one_last_event(order: list[int]) -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(*(frame_of(synth(), number) for number in order), End("r1", len(order), 0, 1))
    started, *chunks, last = bench.events["r1"]
    assert started == Started(RATE)
    prefix = next((n for n, number in enumerate(order) if number != n), len(order))
    assert len(chunks) == prefix
    for number, event in enumerate(chunks):
        assert isinstance(event, Arrived)
        np.testing.assert_array_equal(event.chunk, frame_of(synth(), number).samples)
    assert isinstance(last, Finished) == (prefix == len(order))
    assert isinstance(last, Finished | Failed)


def test_half_precision_mel_is_delivered_as_float32() -> None:
    request = synth(output="mel")
    bench = Bench()
    bench.streaming(request)
    bench.receive(frame_of(request, 0), frame_of(request, 1))
    _, *chunks = bench.events["r1"]
    assert [event.chunk.dtype for event in chunks] == [np.float32, np.float32]


# ---- cancelling ----


def test_cancel_is_sent_once_and_what_was_on_its_way_is_ignored_until_the_brokers_last_word() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.cancel("r1", bench.now)
    bench.session.cancel("r1", bench.now)
    assert bench.take_sent() == [Cancel("r1")]
    bench.receive(frame_of(synth(), 0))
    bench.receive(Error("r1", "cancelled", "cancelled", "", False, 0))
    assert bench.take_sent() == [EndAck("r1")]
    assert [type(event) for event in bench.events["r1"]] == [Started, Failed]
    bench.receive(Error("r1", "cancelled", "again", "", False, 0))
    assert bench.take_sent() == []


def test_an_end_that_crosses_a_cancel_is_acknowledged() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.cancel("r1", bench.now)
    bench.take_sent()
    bench.receive(End("r1", 0, 0, 1))
    assert bench.take_sent() == [EndAck("r1")]


def test_a_cancelled_request_is_forgotten_when_the_broker_never_answers() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.cancel("r1", bench.now)
    bench.take_sent()
    bench.pass_time(FORGET_AFTER + 1)
    bench.receive(Error("r1", "cancelled", "late", "", False, 0))
    assert bench.take_sent() == []


def test_closing_cancels_everything_for_broker_and_callers() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.query(ListVoices, 5, bench.now)
    bench.take_sent()
    bench.session.close(bench.now)
    assert bench.take_sent() == [Cancel("r1")]
    assert isinstance(bench.error(), Cancelled)
    assert isinstance(bench.error(5), Cancelled)


# ---- time ----


def test_no_broker_within_the_connect_timeout_is_unavailable_and_says_how_to_start_one() -> None:
    bench = Bench(connected=False)
    bench.open(synth())
    bench.session.query(ListVoices, 5, bench.now)
    bench.pass_time(4.9)
    assert bench.events == {}
    bench.pass_time(0.2)
    for key in ("r1", 5):
        assert isinstance(bench.error(key), Unavailable)
        assert "tcp://there:1" in bench.error(key).text
        assert "lighttts-cli up" in bench.error(key).text


def test_a_broker_that_accepts_connections_but_never_says_welcome_is_unavailable() -> None:
    bench = Bench(connected=False)
    bench.session.connection.made(bench.now)
    bench.open(synth())
    bench.pass_time(5.1)
    assert isinstance(bench.error(), Unavailable)


def test_the_deadline_ends_the_request_whatever_it_is_doing() -> None:
    bench = Bench()
    bench.streaming(synth(deadline_ms=2000))
    bench.pass_time(1.9)
    bench.receive(frame_of(synth(), 0))
    bench.pass_time(0.2)
    assert isinstance(bench.error(), DeadlineExceeded)
    assert Cancel("r1") in bench.take_sent()


def test_nothing_new_within_the_timeout_is_deadline_exceeded_though_the_broker_lives() -> None:
    bench = Bench()
    bench.streaming(synth())
    for _ in range(59):
        bench.pass_time(1.0)
        bench.receive(WELCOME)
    assert len(bench.events["r1"]) == 1
    bench.pass_time(2.0)
    assert isinstance(bench.error(), DeadlineExceeded)
    assert "60 s" in bench.error().text


def test_time_in_which_the_caller_does_not_read_is_not_held_against_the_broker() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(frame_of(synth(), 0))
    for _ in range(200):
        bench.pass_time(1.0)
        bench.receive(WELCOME)
    assert [type(event) for event in bench.events["r1"]] == [Started, Arrived]


# ---- losing the broker ----


def test_a_lost_connection_ends_what_is_not_connected_again_in_time() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.disconnected(bench.now)
    bench.take_sent()
    bench.pass_time(TIMEOUTS.connect - 0.1)
    assert len(bench.events["r1"]) == 1
    bench.pass_time(0.2)
    assert isinstance(bench.error(), Unavailable)
    assert "lost" in bench.error().text
    assert bench.error().retryable


def test_a_client_that_is_not_let_in_again_is_told_so() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.disconnected(bench.now)
    bench.session.connection.refused(bench.now)
    bench.pass_time(TIMEOUTS.connect + 0.1)
    assert isinstance(bench.error(), AccessDenied)


def test_over_a_new_connection_a_stream_goes_on_behind_the_last_frame_that_came() -> None:
    bench = Bench()
    bench.streaming(synth())
    frames = [frame_of(synth(), seq) for seq in range(4)]
    bench.receive(*frames[:3])
    bench.consume(1)
    bench.session.disconnected(bench.now)
    bench.session.connection.made(bench.now)
    bench.receive(WELCOME)
    rows = sum(len(frame.samples) for frame in frames[:3] if isinstance(frame, Audio))
    assert bench.take_sent() == [HELLO, Resume("r1", True, 3, rows, WINDOW - 2)]
    bench.receive(frames[3], End("r1", 4, 50, 1))
    assert [type(event) for event in bench.events["r1"]] == [Started, *[Arrived] * 4, Finished]


def test_a_request_that_was_not_accepted_when_the_connection_was_lost_may_still_be() -> None:
    bench = Bench()
    bench.open(synth())
    bench.session.disconnected(bench.now)
    bench.session.connection.made(bench.now)
    bench.receive(WELCOME)
    assert bench.take_sent()[-1] == Resume("r1", False, 0, 0, WINDOW)
    bench.receive(Accepted("r1", RATE), frame_of(synth(), 0))
    assert [type(event) for event in bench.events["r1"]] == [Started, Arrived]


def test_a_broker_that_knows_nothing_of_a_resumed_request_ends_it() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.disconnected(bench.now)
    bench.session.connection.made(bench.now)
    bench.receive(WELCOME, Error("r1", "unknown_request", "send it again", "", True, 0))
    assert isinstance(bench.error(), UnknownRequest)


def test_a_lost_connection_keeps_what_the_broker_did_not_know() -> None:
    bench = Bench()
    bench.session.disconnected(bench.now)
    bench.session.query(ListVoices, 5, bench.now)
    bench.session.connection.made(bench.now)
    bench.receive(WELCOME)
    assert bench.take_sent() == [HELLO, ListVoices(5)]


def test_silence_is_answered_by_a_hello_and_then_the_broker_counts_as_lost() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.pass_time(ALONE.greet + 0.1)
    assert bench.take_sent() == [HELLO]
    bench.pass_time(ALONE.lost - ALONE.greet)
    assert bench.connects == ["tcp://there:1"]
    bench.pass_time(TIMEOUTS.connect + 0.1)
    assert isinstance(bench.error(), Unavailable)
    assert "stuck" in bench.error().text


def test_a_broker_that_answers_the_hello_is_not_lost() -> None:
    bench = Bench()
    bench.streaming(synth())
    for _ in range(8):
        bench.pass_time(ALONE.greet + 0.1)
        assert bench.take_sent() == [HELLO]
        bench.receive(WELCOME)
    assert [type(event) for event in bench.events["r1"]] == [Started]


def test_an_idle_client_sends_nothing() -> None:
    bench = Bench()
    bench.pass_time(10_000.0)
    assert bench.take_sent() == []


# ---- bad messages ----


@pytest.mark.parametrize("frames", [[], [b"LT\x03\x22"], [b"LT\x09\x22", b"\x90"], [b"XX\x01\x22", b"\x90"]])
def test_what_is_no_message_fails_everything_with_a_protocol_error(frames: list[bytes]) -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.received(frames, bench.now)
    bench.take_sent()
    assert isinstance(bench.error(), ProtocolError)


def test_a_message_for_workers_fails_everything_with_a_protocol_error() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.receive(Grant(1, 1))
    assert isinstance(bench.error(), ProtocolError)
    assert "Grant" in bench.error().text


def test_messages_of_unknown_requests_and_queries_are_ignored() -> None:
    bench = Bench()
    bench.receive(End("other", 0, 0, 1), Voices(99, RATE, ()), frame_of(synth(), 0))
    assert (bench.take_sent(), bench.events) == ([], {})


def test_an_error_without_request_id_fails_what_has_had_no_answer_yet_and_nothing_else() -> None:
    bench = Bench()
    bench.streaming(synth())
    bench.session.query(ListVoices, 5, bench.now)
    bench.receive(Error("", "protocol", "version 1 is too old", "", False, 0))
    assert isinstance(bench.error(5), ProtocolError)
    assert [type(event) for event in bench.events["r1"]] == [Started]


def test_a_refused_hello_fails_those_who_wait() -> None:
    bench = Bench(connected=False)
    bench.open(synth())
    bench.session.connection.made(bench.now)
    bench.receive(Error("", "protocol", "version 1 is too old", "", False, 0))
    assert "too old" in bench.error().text


def test_an_answer_is_delivered_once_to_its_query() -> None:
    bench = Bench()
    bench.session.query(ListVoices, 5, bench.now)
    bench.receive(Voices(5, RATE, ("a",)), Voices(5, RATE, ("b",)))
    assert bench.events == {5: [Answered(Voices(5, RATE, ("a",)))]}
