"""Workers of the version before go on working, and are never asked for what they would leave out."""

from __future__ import annotations

import pytest

from lighttts.transport import wire
from lighttts.transport.wire import OLDEST, VERSION
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, convert, encoded, source, synth

OLD, NEW = b"encode-1", b"encode-9"


def told_how() -> wire.Synth:
    """A request that the version before has no words for."""
    return synth("new", instruct="in a whisper")


@pytest.fixture
def harness() -> Harness:
    """A core with one worker of each stage, of which the one that encodes is of the version before."""
    harness = Harness()
    for epoch, stage in enumerate(wire.STAGES, 1):
        harness.worker(stage, epoch, version=OLDEST if stage == "encode" else VERSION)
    return harness


def test_an_older_worker_gets_what_it_knows(harness: Harness) -> None:
    harness.say(synth())
    assert [work.request_id for work in harness.take(OLD)] == ["r1"]


def test_what_an_older_worker_does_not_know_waits_for_one_that_does(harness: Harness) -> None:
    assert harness.say(told_how()) == [wire.Accepted("new", SAMPLE_RATE)]
    assert harness.take(OLD) == []
    hello = wire.Register("new", 9, "encode", "", "", SAMPLE_RATE, ("anna",))
    _, work = harness.control(NEW, hello, wire.Grant(9, 1))
    assert isinstance(work, wire.EncodeWork)
    assert (work.request_id, work.instruct) == ("new", "in a whisper")


def test_what_waits_for_a_newer_worker_holds_up_nobody(harness: Harness) -> None:
    harness.say(told_how(), synth("r2"), synth("r3"))
    assert [work.request_id for work in harness.take(OLD)] == ["r2", "r3"]


def test_where_all_workers_are_older_the_request_ends_as_if_there_were_none(harness: Harness) -> None:
    harness.say(told_how())
    harness.pass_time(harness.settings.no_worker_s + 1, alive=[(b"encode-1", 1), (b"llm-2", 2), (b"decode-3", 3)])
    (error,) = (message for message in harness.take(CLIENT) if isinstance(message, wire.Error))
    assert (error.code, error.retryable) == ("no_worker", True)
    assert "older version" in error.text


def test_once_encoded_a_request_is_for_workers_of_any_version() -> None:
    harness = Harness()
    for epoch, stage in enumerate(wire.STAGES, 1):
        harness.worker(stage, epoch, version=VERSION if stage == "encode" else OLDEST)
    harness.say(told_how())
    harness.result(encoded("new", 1))
    assert [work.request_id for work in harness.take(b"llm-2")] == ["new"]


def test_a_conversion_is_not_for_an_older_decode_worker() -> None:
    """Which would not know that the silence in it is a recording's."""
    harness = Harness()
    for epoch, stage in enumerate(wire.STAGES, 1):
        harness.worker(stage, epoch, version=OLDEST if stage == "decode" else VERSION)
    harness.say(convert())
    harness.result(source("r1", 1))
    assert harness.take(b"decode-3") == []
    hello = wire.Register("new", 13, "decode", "", "", SAMPLE_RATE, ())
    _, work, *_ = harness.control(b"decode-13", hello, wire.Grant(13, 1))
    assert isinstance(work, wire.DecodeWork)
    assert work.recorded
