"""A worker is lost, another goes on where it stopped; a request that ends its workers is found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.broker.token_log import TokenLog
from lighttts.transport import wire
from tests.broker.harness import CLIENT, Harness, encoded, synth, tokens


@pytest.fixture
def harness() -> Harness:
    """Two workers of each stage; those with the higher epochs have no credit yet."""
    harness = Harness(no_worker_s=100)
    harness.stack()
    for epoch, stage in enumerate(wire.STAGES, 11):
        harness.worker(stage, epoch, credit=0)
    return harness


def lose(harness: Harness, worker: bytes, epoch: int) -> None:
    """The worker's connection is found closed."""
    harness.gone.add(worker)
    harness.control(worker, wire.Heartbeat(epoch, 1, 0, 0))


def two_sentences(harness: Harness, request_id: str = "r1") -> wire.Encoded:
    """A request with two sentences, encoded."""
    harness.say(synth(request_id, output="audio"))
    result = replace(encoded(request_id, 1), lengths=(2, 1))
    harness.result(result)
    return result


def frame(seq: int, sentence: int, count: int, *, final: bool = False, attempt: int = 0, epoch: int = 2) -> wire.Tokens:
    """Tokens of the llm stage; the second sentence is the last."""
    ids = np.arange(count, dtype=np.int32) + 100 * seq
    return wire.Tokens("r1", attempt, epoch, seq, sentence, final, final and sentence == 1, ids)


def speech(
    seq: int, sentence: int, first: int, count: int, *, last: bool = False, attempt: int = 0, epoch: int = 3
) -> wire.Audio:
    """Samples `first` and on of the request, each its own number."""
    samples = np.arange(first, first + count, dtype=np.float32)
    return wire.Audio("r1", attempt, epoch, seq, sentence, last, first, 0, samples)


def test_another_encode_worker_gets_the_text(harness: Harness) -> None:
    harness.say(synth())
    first = harness.take(b"encode-1")
    lose(harness, b"encode-1", 1)
    assert harness.control(b"encode-11", wire.Grant(11, 1)) == [replace(first[0], attempt=1)]
    harness.result(encoded("r1", 11, attempt=1))
    assert isinstance(harness.take(b"llm-2")[-1], wire.GenerateWork)


def test_another_llm_worker_goes_on_behind_the_last_token(harness: Harness) -> None:
    result = two_sentences(harness)
    harness.result(frame(0, 0, 25), frame(1, 0, 5, final=True), frame(2, 1, 7), frame(3, 1, 3))
    lose(harness, b"llm-2", 2)
    (work,) = harness.control(b"llm-12", wire.Grant(12, 1))
    done = np.concatenate([np.arange(7), np.arange(3) + 100]).astype(np.int32) + 200
    assert work == wire.GenerateWork(
        "r1",
        1,
        7,
        1,
        4,
        (2, 1),
        result.text_ids,
        result.prompt_text_ids,
        result.llm_prompt_tokens,
        done,
    )


def test_the_decode_worker_hears_one_stream_of_tokens_whoever_makes_them(harness: Harness) -> None:
    two_sentences(harness)
    harness.result(frame(0, 0, 25))
    harness.take(b"decode-3")
    lose(harness, b"llm-2", 2)
    harness.control(b"llm-12", wire.Grant(12, 1))
    made = frame(1, 0, 5, final=True, attempt=1, epoch=12)
    harness.result(made)
    assert harness.take(b"decode-3") == [replace(made, attempt=0)]


def test_late_tokens_of_the_lost_worker_are_dropped(harness: Harness) -> None:
    two_sentences(harness)
    harness.result(frame(0, 0, 25))
    harness.take(b"decode-3")
    lose(harness, b"llm-2", 2)
    harness.control(b"llm-12", wire.Grant(12, 1))
    harness.result(frame(1, 0, 25))
    assert harness.take(b"decode-3") == []
    assert not harness.core.idle


def test_another_decode_worker_begins_with_the_unfinished_sentence_and_skips_what_was_heard(harness: Harness) -> None:
    result = two_sentences(harness)
    made = [frame(0, 0, 25), frame(1, 0, 5, final=True), frame(2, 1, 50), frame(3, 1, 10)]
    harness.result(*made, speech(0, 0, 0, 480), speech(1, 0, 480, 20), speech(2, 1, 500, 700))
    lose(harness, b"decode-3", 3)
    work, *fed = harness.control(b"decode-13", wire.Grant(13, 1))
    voice = (result.voice_key, result.voice_tokens, result.voice_mel, result.voice_embedding)
    assert work == wire.DecodeWork("r1", 1, 7, 1.0, "audio", "f32", 1, 2, 30, 3, 500, 700, *voice)
    assert fed == [replace(message, attempt=1) for message in made[2:]]


def test_tokens_made_while_no_decode_worker_is_there_are_not_lost(harness: Harness) -> None:
    two_sentences(harness)
    made = [frame(0, 0, 25), frame(1, 0, 5, final=True), frame(2, 1, 9, final=True)]
    harness.result(made[0])
    lose(harness, b"decode-3", 3)
    harness.result(*made[1:])
    _, *fed = harness.control(b"decode-13", wire.Grant(13, 1))
    assert fed == [replace(message, attempt=1) for message in made]


def test_the_client_hears_every_sample_once_and_in_order(harness: Harness) -> None:
    two_sentences(harness)
    harness.result(frame(0, 0, 25, final=True), speech(0, 0, 0, 480))
    lose(harness, b"decode-3", 3)
    lose(harness, b"llm-2", 2)
    harness.control(b"decode-13", wire.Grant(13, 1))
    harness.control(b"llm-12", wire.Grant(12, 1))
    harness.result(speech(1, 0, 480, 100))
    harness.result(frame(1, 1, 25, final=True, attempt=1, epoch=12))
    harness.result(speech(1, 0, 480, 20, attempt=1, epoch=13), speech(2, 1, 500, 9, last=True, attempt=1, epoch=13))
    *heard, end = harness.take(CLIENT)
    samples = np.concatenate([message.samples for message in heard if isinstance(message, wire.Audio)])
    assert samples.tolist() == [*range(509)]
    assert end == wire.End("r1", 3, 50, 2)
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_work_taken_over_goes_before_work_that_waits(harness: Harness) -> None:
    harness.say(synth("r1"))
    harness.control(b"encode-1", wire.Drain(1))
    harness.say(synth("r2"))
    lose(harness, b"encode-1", 1)
    works = harness.control(b"encode-11", wire.Grant(11, 2))
    assert [work.request_id for work in works if isinstance(work, wire.EncodeWork)] == ["r1", "r2"]


def test_a_request_cancelled_between_two_workers_is_given_to_nobody(harness: Harness) -> None:
    harness.say(synth())
    lose(harness, b"encode-1", 1)
    harness.say(wire.Cancel("r1"))
    assert harness.control(b"encode-11", wire.Grant(11, 1)) == []


def test_a_request_that_ends_two_workers_by_itself_is_poison(harness: Harness) -> None:
    harness.say(synth())
    lose(harness, b"encode-1", 1)
    harness.control(b"encode-11", wire.Grant(11, 1))
    lose(harness, b"encode-11", 11)
    error = harness.take(CLIENT)[-1]
    assert isinstance(error, wire.Error)
    assert (error.code, error.retryable) == ("poison", False)


def test_losing_a_worker_of_each_of_two_stages_makes_no_poison(harness: Harness) -> None:
    two_sentences(harness)
    harness.result(frame(0, 0, 25))
    lose(harness, b"decode-3", 3)
    harness.control(b"decode-13", wire.Grant(13, 1))
    lose(harness, b"llm-2", 2)
    assert "r1" in harness.core._board.requests.live


def test_workers_that_leave_or_join_anew_blame_nobody(harness: Harness) -> None:
    harness.say(synth())
    for epoch in (1, 11, 21, 31):
        worker = f"encode-{epoch}".encode()
        if epoch > 20:
            harness.worker("encode", epoch, credit=0)
        harness.control(worker, wire.Grant(epoch, 1), wire.Bye(epoch))
        harness.tick(0.6)
    assert harness.core.load().waiting == 1


def test_a_request_that_gets_on_between_two_deaths_is_not_their_cause(harness: Harness) -> None:
    two_sentences(harness)
    harness.result(frame(0, 0, 25))
    lose(harness, b"llm-2", 2)
    harness.control(b"llm-12", wire.Grant(12, 1))
    harness.result(frame(1, 0, 25, attempt=1, epoch=12))
    lose(harness, b"llm-12", 12)
    harness.worker("llm", 22)
    assert not harness.core.idle


def test_the_cause_among_many_is_found_and_only_it_fails() -> None:
    harness = Harness(no_worker_s=1000)
    names = ["r1", "r2", "poison", "r4"]
    epoch = 0
    harness.say(*(synth(name) for name in names))
    done: set[str] = set()
    while len(done) < 4:
        epoch += 1
        assert epoch < 20
        worker = harness.worker_with_work("encode", epoch, credit=4)
        while worker.mine:
            if "poison" in worker.mine:
                lose(harness, worker.identity, epoch)
                break
            name, attempt = worker.mine.popitem()
            harness.result(encoded(name, epoch, attempt))
            done.add(name)
            worker.read()
        done.update(m.request_id for m in harness.take(CLIENT) if isinstance(m, wire.Error) and m.code == "poison")
    assert epoch <= 4
    assert set(harness.core._board.requests.live) == {"r1", "r2", "r4"}


def test_the_token_log_says_what_comes_before_within_and_after() -> None:
    log = TokenLog()
    for seq, (sentence, count, final) in enumerate([(0, 2, False), (0, 1, True), (1, 3, False)]):
        log.add(wire.encode(tokens("r1", 2, seq, count=count)), count, final=final)
        assert log.sentence == sentence + final
    assert (len(log), log.tokens, log.before(1)) == (3, 6, (2, 3))
    assert log.unfinished().tolist() == [2, 3, 4]
    assert [wire.decode(frames) for frames in log.since(1)] == [tokens("r1", 2, 2, count=3)]
