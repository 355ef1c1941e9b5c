"""Text that comes in pieces: it is encoded a little at a time, another worker goes on with it where one is lost, and
its client is held to what it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.broker.instructions import Metric
from lighttts.broker.outbox import Channel
from lighttts.broker.pieces import SILENCE_S
from lighttts.transport import wire
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, audio, encoded, synth

NONE = np.zeros(0, np.int32)
ALIVE = [(b"encode-1", 1), (b"llm-2", 2), (b"decode-3", 3)]


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def opened(request_id: str = "r1", **changes: object) -> wire.Synth:
    return synth(request_id, text="", pieces="auto", **changes)


def voice(attempt: int = 0, method: str = "interleaved", epoch: int = 1) -> wire.Encoded:
    """The encode stage's first answer: no text yet."""
    return replace(encoded("r1", epoch, attempt), lengths=(), text_ids=NONE, pieces=method)


def made(*lengths: int, used: int, whole: bool = True, attempt: int = 0, epoch: int = 1) -> wire.EncodedText:
    """What an encode worker makes of text: ids 0, 1, 2, ... in sentences of these lengths."""
    text = np.arange(sum(lengths), dtype=np.int32)
    return wire.EncodedText("r1", attempt, epoch, lengths, whole, used, text)


def tokens(
    seq: int, sentence: int = 0, *values: int, final: bool = False, last: bool = False, attempt: int = 0, epoch: int = 2
) -> wire.Tokens:
    return wire.Tokens("r1", attempt, epoch, seq, sentence, final, last, ids(*values))


def generate(**changes: object) -> wire.GenerateWork:
    work = wire.GenerateWork("r1", 0, 7, 0, 0, (), NONE, NONE, ids(4), NONE, "interleaved")
    return replace(work, **changes)  # type: ignore[arg-type]


def more(sentence: int, *values: int, final: bool = False, last: bool = False, attempt: int = 0) -> wire.MoreText:
    return wire.MoreText("r1", attempt, sentence, final, last, ids(*values))


def work(text: str, *, flush: bool = False, attempt: int = 0, method: str = "interleaved") -> wire.TextWork:
    return wire.TextWork("r1", attempt, method, flush, text)


@pytest.fixture
def harness() -> Harness:
    harness = Harness()
    harness.stack(credit=8)
    return harness


@pytest.fixture
def begun(harness: Harness) -> Harness:
    """A request whose voice is encoded."""
    harness.say(opened())
    harness.result(voice())
    for peer in (b"encode-1", CLIENT):
        harness.take(peer)
    return harness


def error(messages: list[wire.Message]) -> wire.Error:
    (message,) = (message for message in messages if isinstance(message, wire.Error))
    return message


def test_text_is_spoken_while_it_is_written(harness: Harness) -> None:
    assert harness.say(opened()) == [wire.Accepted("r1", SAMPLE_RATE)]
    assert harness.take(b"encode-1") == [wire.EncodeWork("r1", 0, "", "anna", "", b"", "", "auto")]
    harness.say(wire.Piece("r1", 0, "The quick br"))
    harness.result(voice())
    assert harness.take(b"encode-1") == [work("The quick br")]
    harness.result(made(2, used=0, whole=False))
    assert harness.take(b"llm-2") == [generate(), more(0, 0, 1)]
    harness.say(wire.Piece("r1", 1, "own fox"), wire.Flush("r1", 2))
    assert harness.take(b"encode-1") == [work("The quick brown fox")]
    harness.result(made(3, used=0, whole=False), made(4, used=19))
    assert harness.take(b"encode-1") == [work("The quick brown fox", flush=True)]
    assert harness.take(b"llm-2") == [more(0, 2), more(0, 3, final=True)]
    harness.result(tokens(0, 0, 5, 6), tokens(1, 0), tokens(2, 0, 7, final=True))
    assert harness.take(CLIENT) == [wire.Written("r1", wire.TEXT_WINDOW + 19)]
    assert [type(message) for message in harness.take(b"decode-3")] == [wire.DecodeWork, *[wire.Tokens] * 3]
    harness.say(wire.Finish("r1", 3))
    assert harness.take(b"llm-2") == [more(1, final=True, last=True)]
    harness.result(tokens(3, 1, final=True, last=True), audio("r1", 3, 0))
    harness.result(replace(audio("r1", 3, 1, last=True, samples=480), sentence=1))
    heard = harness.take(CLIENT)
    assert [type(message) for message in heard] == [wire.Audio, wire.Audio, wire.End]
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_nothing_of_it_waits_at_a_worker_before_there_is_text(begun: Harness) -> None:
    assert begun.take(b"llm-2") == []
    assert begun.core.load().waiting == 1


def test_what_comes_meanwhile_is_encoded_together(begun: Harness) -> None:
    for seq, text in enumerate(["One. ", "Two", ". ", "Thr"]):
        begun.say(wire.Piece("r1", seq, text))
    assert begun.take(b"encode-1") == [work("One. ")]
    begun.result(made(used=0))
    assert begun.take(b"encode-1") == [work("One. Two. Thr")]
    begun.result(made(2, 3, used=9))
    assert begun.take(b"llm-2") == [generate(), more(0, 0, 1, final=True), more(1, 2, 3, 4, final=True)]
    begun.say(wire.Flush("r1", 4))
    assert begun.take(b"encode-1") == [work(" Thr", flush=True)]


def test_each_flush_ends_a_text_of_its_own(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "a"), wire.Flush("r1", 1), wire.Flush("r1", 2), wire.Piece("r1", 3, "b"))
    begun.say(wire.Finish("r1", 4))
    assert begun.take(b"encode-1") == [work("a")]
    begun.result(made(used=0), made(1, used=1), made(1, used=1))
    assert begun.take(b"encode-1") == [work("a", flush=True), work("b", flush=True)]
    wanted = [more(0, 0, final=True), more(1, 0, final=True), more(2, final=True, last=True)]
    assert begun.take(b"llm-2") == [generate(), *wanted]


def test_a_text_without_anything_to_speak_ends_without_speech(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "..."), wire.Finish("r1", 1))
    begun.result(made(used=0), made(used=3))
    assert begun.take(b"llm-2") == [generate(), more(0, final=True, last=True)]
    begun.result(tokens(0, 0, final=True, last=True), audio("r1", 3, 0, last=True, samples=0))
    assert begun.take(CLIENT)[-1] == wire.End("r1", 1, 0, 1)


# ---- workers that are lost -------------------------------------------------------------------------------------------


def test_another_llm_worker_gets_the_text_and_the_blocks_of_the_sentence_that_is_spoken(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One. Two three"))
    begun.result(made(2, 3, used=4, whole=False))
    begun.result(tokens(0, 0, 9, final=True), tokens(1, 1, 5, 6), tokens(2, 1), tokens(3, 1, 8))
    begun.worker("llm", 12)
    begun.carry_out(begun.core.gone(Channel.WORKERS, b"llm-2", begun.now))
    taken = generate(attempt=1, sentence=1, seq=4, done_tokens=ids(5, 6, -1, 8))
    assert begun.take(b"llm-12") == [taken, more(1, 2, 3, 4, attempt=1)]
    begun.say(wire.Finish("r1", 1))
    begun.result(made(3, used=10))
    assert begun.take(b"llm-12") == [more(1, final=True, attempt=1), more(2, final=True, last=True, attempt=1)]


def test_another_encode_worker_gets_the_text_that_has_come_meanwhile(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One"))
    begun.take(b"encode-1")
    begun.say(wire.Piece("r1", 1, " two"))
    begun.worker("encode", 11)
    begun.carry_out(begun.core.gone(Channel.WORKERS, b"encode-1", begun.now))
    assert begun.take(b"encode-11") == [work("One two", attempt=1)]
    begun.result(made(1, used=0, attempt=0))
    assert begun.counted[Metric.REFUSED, "stale_epoch"] == 1
    begun.result(made(1, used=0, whole=False, attempt=1, epoch=11))
    assert begun.take(b"llm-2") == [generate(), more(0, 0)]


def test_another_decode_worker_is_given_the_tokens_again(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One"))
    begun.result(made(1, used=0, whole=False), tokens(0, 0, 5), tokens(1, 0))
    begun.worker("decode", 13)
    begun.carry_out(begun.core.gone(Channel.WORKERS, b"decode-3", begun.now))
    assert [type(message) for message in begun.take(b"decode-13")] == [wire.DecodeWork, wire.Tokens, wire.Tokens]


@pytest.mark.parametrize(
    "result",
    [
        made(2, used=4),
        replace(made(2, used=0), lengths=(3,)),
        made(1, used=0, whole=False),
        made(2, used=2, whole=False),
    ],
    ids=["more than there is", "lengths", "less than before", "within a letter"],
)
def test_ids_that_make_no_sense_end_it(begun: Harness, result: wire.EncodedText) -> None:
    begun.say(wire.Piece("r1", 0, "aé"))
    begun.result(made(2, used=0, whole=False))
    begun.say(wire.Piece("r1", 1, ""))
    begun.result(result)
    assert error(begun.take(CLIENT)).code == "worker_failed"
    assert begun.take(b"llm-2")[-1] == wire.Abort("r1", 0)


@pytest.mark.parametrize(
    "frame", [tokens(0, 0, 5, final=True), tokens(0, 0, 5, final=True, last=True), tokens(0, 1, 5)]
)
def test_a_sentence_that_is_not_whole_cannot_be_over(begun: Harness, frame: wire.Tokens) -> None:
    begun.say(wire.Piece("r1", 0, "One"))
    begun.result(made(1, used=0, whole=False), frame)
    assert error(begun.take(CLIENT)).code == "worker_failed"


def test_it_needs_encode_and_llm_workers_that_know_it() -> None:
    harness = Harness(no_worker_s=3.0)
    harness.worker("encode", 1, version=2)
    harness.worker("llm", 2, version=2)
    harness.worker("decode", 3, version=2)
    harness.say(opened("r1"))
    assert harness.take(b"encode-1") == []
    harness.worker("encode", 11)
    harness.take(CLIENT)
    harness.say(wire.Piece("r1", 0, "One"))
    harness.result(voice(epoch=11), made(1, used=0, whole=False, epoch=11))
    assert harness.take(b"llm-2") == []
    harness.pass_time(4.0, alive=[(b"encode-11", 11), (b"llm-2", 2), (b"decode-3", 3)])
    assert error(harness.take(CLIENT)).code == "no_worker"


# ---- what the client is held to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        [wire.Piece("r1", 1, "a")],
        [wire.Piece("r1", 0, "a"), wire.Piece("r1", 0, "a")],
        [wire.Finish("r1", 0), wire.Piece("r1", 1, "a")],
        [wire.Finish("r1", 0), wire.Flush("r1", 1)],
        [wire.Piece("r1", seq, "x" * wire.MAX_PIECE) for seq in range(5)],
    ],
    ids=["gap", "repeat", "after the end", "flush after the end", "too much"],
)
def test_what_breaks_the_protocol_ends_it(begun: Harness, said: list[wire.Message]) -> None:
    assert error(begun.say(*said)).code == "protocol"
    begun.say(wire.Piece("r1", 9, "late"), wire.EndAck("r1"))
    assert begun.free


def test_only_as_much_may_be_written_as_is_not_spoken(begun: Harness) -> None:
    begun.say(*(wire.Piece("r1", seq, "x" * wire.MAX_PIECE) for seq in range(4)))
    begun.result(made(used=0), made(5, used=400))
    assert begun.take(CLIENT) == []
    begun.result(tokens(0, 0, 1, final=True))
    assert begun.take(CLIENT) == [wire.Written("r1", wire.TEXT_WINDOW + 400)]
    assert begun.say(wire.Piece("r1", 4, "x" * 400)) == []
    assert error(begun.say(wire.Piece("r1", 5, "x"))).code == "protocol"


def test_pieces_for_a_whole_text_are_refused_and_for_no_request_ignored(harness: Harness) -> None:
    harness.say(synth())
    assert error(harness.say(wire.Piece("r1", 0, "a"))).code == "protocol"
    assert harness.say(wire.Piece("r9", 0, "a"), client=b"other") == []


def test_a_text_in_pieces_begins_with_none(harness: Harness) -> None:
    refused = error(harness.say(synth(pieces="auto")))
    assert (refused.code, refused.field) == ("invalid_input", "text")


def test_a_client_that_falls_silent_is_given_up(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One"))
    begun.result(made(1, used=0, whole=False))
    begun.pass_time(SILENCE_S - 1, alive=ALIVE)
    begun.say(wire.Piece("r1", 1, ""))
    begun.result(made(1, used=0, whole=False))
    begun.pass_time(SILENCE_S - 1, alive=ALIVE)
    assert not any(isinstance(message, wire.Error) for message in begun.take(CLIENT))
    begun.pass_time(2, alive=ALIVE)
    assert error(begun.take(CLIENT)).code == "deadline_exceeded"


def test_a_client_that_has_finished_or_waits_for_speech_may_be_silent(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One"), wire.Flush("r1", 1))
    begun.result(made(used=0), made(1, used=3))
    begun.pass_time(SILENCE_S + 2, alive=ALIVE)
    begun.result(tokens(0, 0, 5, final=True), audio("r1", 3, 0, samples=SAMPLE_RATE * 20))
    begun.pass_time(SILENCE_S + 10, alive=ALIVE)
    assert not any(isinstance(message, wire.Error) for message in begun.take(CLIENT))
    begun.say(wire.Finish("r1", 2))
    begun.pass_time(3 * SILENCE_S, alive=ALIVE)
    assert not any(isinstance(message, wire.Error) for message in begun.take(CLIENT))


def test_without_a_deadline_of_its_own_it_counts_from_the_last_word() -> None:
    harness = Harness(deadline_s=20.0)
    harness.stack()
    harness.say(opened("r1"), opened("r2", deadline_ms=30_000))
    for seq in range(5):
        harness.pass_time(15.0, alive=ALIVE)
        harness.say(wire.Piece("r1", seq, "a"), wire.Piece("r2", seq, "a"))
    errors = [message for message in harness.take(CLIENT) if isinstance(message, wire.Error)]
    assert {message.request_id for message in errors} <= {"r2"}
    assert "r1" in harness.core._board.requests.live


@pytest.mark.parametrize("at", ["voice", "text", "speech"])
def test_a_cancel_frees_everything(harness: Harness, at: str) -> None:
    harness.say(opened(), wire.Piece("r1", 0, "One"))
    if at != "voice":
        harness.result(voice())
    if at == "speech":
        harness.result(made(1, used=0, whole=False), tokens(0, 0, 5))
    harness.say(wire.Cancel("r1"), wire.EndAck("r1"))
    assert harness.free


def test_a_broken_connection_ends_it_and_it_is_not_gone_on_with(begun: Harness) -> None:
    begun.say(wire.Piece("r1", 0, "One"))
    begun.result(made(1, used=0, whole=False), tokens(0, 0, 5))
    begun.carry_out(begun.core.gone(Channel.CLIENTS, CLIENT, begun.now))
    assert begun.free
    assert begun.take(b"llm-2")[-1] == wire.Abort("r1", 0)
    begun.say(wire.Resume("r1", True, 0, 0, 9), client=b"again")
    begun.fetch()
    refused = error(begun.take(b"again"))
    assert (refused.code, refused.retryable) == ("unknown_request", True)


def test_whoever_comes_back_before_the_loss_is_noticed_is_told_so_too(begun: Harness) -> None:
    assert error(begun.say(wire.Resume("r1", True, 0, 0, 9), client=b"again")).code == "unknown_request"
    assert begun.free


def test_a_record_that_a_dead_broker_left_is_removed(harness: Harness) -> None:
    harness.say(opened())
    saved = harness.store.requests["r1"]
    other = Harness()
    other.stack()
    other.say(wire.Resume("r1", True, 0, 0, 9))
    other.carry_out(other.core.fetched("r1", saved, other.now))
    assert error(other.take(CLIENT)).code == "unknown_request"
    assert other.deleted == ["r1"]
