"""A client goes on with a request of a broker that is gone, from what the state store kept of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.broker.endings import MOST
from lighttts.broker.instructions import Fetch, Metric
from lighttts.broker.outbox import Channel
from lighttts.broker.quota import KEYED
from lighttts.broker.state import Claim, Saved
from lighttts.transport import wire
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, audio, encoded, synth, tokens

WALL = 1_000_000.0
RESUME = wire.Resume("r1", True, 0, 0, 50)


@pytest.fixture
def harness() -> Harness:
    """A broker that has just started on the store of another, with workers."""
    harness = Harness(durable=True, wall=lambda: WALL)
    harness.stack()
    return harness


def record(*log: wire.Tokens, done: bool = True, **changes: object) -> Saved:
    """What the lost broker stored."""
    request = synth(**changes)
    messages = {message.seq: wire.encode(message) for message in log}
    return Saved(CLIENT, wire.encode(request), "", wire.encode(encoded("r1", 77)) if done else (), messages, WALL - 5)


def test_the_record_is_asked_for_until_its_owners_lease_has_run_out(harness: Harness) -> None:
    harness.say(RESUME)
    assert harness.fetches == [Fetch("r1")]
    harness.carry_out(harness.core.fetched("r1", Claim.FOREIGN, harness.now))
    harness.pass_time(1.0)
    assert len(harness.fetches) > 1
    harness.carry_out(harness.core.fetched("r1", record(done=False), harness.now))
    assert harness.take(b"encode-1") == [wire.EncodeWork("r1", 0, "Hello.", "anna", "", b"")]


def test_a_record_that_never_comes_is_an_unknown_request(harness: Harness) -> None:
    harness.say(RESUME)
    harness.pass_time(11.0, alive=[(b"encode-1", 1), (b"llm-2", 2), (b"decode-3", 3)])
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.code, error.retryable) == ("unknown_request", True)
    assert harness.core.idle


def test_a_request_of_which_nothing_is_stored_is_unknown_at_once(harness: Harness) -> None:
    harness.say(RESUME)
    harness.fetch()
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.code, error.retryable) == ("unknown_request", True)
    assert harness.core.idle


def test_what_was_heard_is_neither_repeated_nor_lost(harness: Harness) -> None:
    log = [tokens("r1", 9, 0), tokens("r1", 9, 1)]
    harness.say(replace(RESUME, seq=2, rows=960))
    harness.carry_out(harness.core.fetched("r1", record(*log), harness.now))
    (generate,) = harness.take(b"llm-2")
    assert isinstance(generate, wire.GenerateWork)
    assert (generate.sentence, generate.seq, len(generate.done_tokens)) == (0, 2, 50)
    work, *fed = harness.take(b"decode-3")
    assert isinstance(work, wire.DecodeWork)
    assert (work.sentence, work.tokens_seq, work.seq, work.first_row, work.skip) == (0, 0, 2, 0, 960)
    assert fed == log
    harness.result(tokens("r1", 2, 2, last=True), audio("r1", 3, 2, last=True))
    assert harness.take(CLIENT) == [audio("r1", 3, 2, last=True), wire.End("r1", 3, 75, 1)]


def test_a_request_whose_tokens_are_all_made_needs_no_llm_worker(harness: Harness) -> None:
    harness.say(replace(RESUME, seq=1, rows=480))
    harness.carry_out(harness.core.fetched("r1", record(tokens("r1", 9, 0, last=True)), harness.now))
    assert harness.take(b"llm-2") == []
    harness.result(audio("r1", 3, 1, last=True))
    assert isinstance(harness.take(CLIENT)[-1], wire.End)


def test_tokens_as_output_go_on_behind_the_last_that_came(harness: Harness) -> None:
    log = [tokens("r1", 9, seq) for seq in range(3)]
    harness.say(replace(RESUME, seq=1, rows=25))
    harness.carry_out(harness.core.fetched("r1", record(*log, output="tokens"), harness.now))
    assert harness.take(CLIENT) == log[1:]
    last = tokens("r1", 2, 3, last=True)
    harness.result(last)
    assert harness.take(CLIENT) == [last, wire.End("r1", 4, 100, 1)]


def test_tokens_that_are_all_made_are_sent_and_end_the_request(harness: Harness) -> None:
    log = [tokens("r1", 9, 0), tokens("r1", 9, 1, last=True)]
    harness.say(replace(RESUME, seq=1, rows=25))
    harness.carry_out(harness.core.fetched("r1", record(*log, output="tokens"), harness.now))
    assert harness.take(CLIENT) == [log[1], wire.End("r1", 2, 50, 1)]


def test_resumptions_that_wait_are_bounded() -> None:
    harness = Harness(durable=True, max_requests=2)
    assert harness.say(*(replace(RESUME, request_id=f"r{number}") for number in range(4))) == []
    (error,) = harness.say(replace(RESUME, request_id="r9"))
    assert isinstance(error, wire.Error)
    assert error.code == "overloaded"


def test_tokens_that_were_heard_but_never_stored_cannot_be_gone_on_from(harness: Harness) -> None:
    harness.say(replace(RESUME, seq=5, rows=125))
    harness.carry_out(harness.core.fetched("r1", record(tokens("r1", 9, 0), output="tokens"), harness.now))
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert error.code == "unknown_request"
    assert harness.core.idle


def test_a_client_that_was_never_told_so_hears_that_it_is_accepted(harness: Harness) -> None:
    harness.say(replace(RESUME, accepted=False))
    harness.carry_out(harness.core.fetched("r1", record(done=False), harness.now))
    assert harness.take(CLIENT) == [wire.Accepted("r1", SAMPLE_RATE)]


def test_the_deadline_is_that_of_the_request_not_of_its_resumption(harness: Harness) -> None:
    harness.say(RESUME)
    harness.carry_out(harness.core.fetched("r1", record(done=False, deadline_ms=5500), harness.now))
    harness.take(CLIENT)
    harness.tick(0.6)
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert error.code == "deadline_exceeded"


def test_a_second_takeover_after_a_resumption_still_skips_what_was_heard(harness: Harness) -> None:
    """Where the sentence of the first frame after a resumption began is not known."""
    harness.say(replace(RESUME, seq=2, rows=960))
    result = replace(encoded("r1", 77), lengths=(2, 1))
    saved = record(tokens("r1", 9, 0))
    saved.encoded = wire.encode(result)
    harness.carry_out(harness.core.fetched("r1", saved, harness.now))
    harness.result(wire.Tokens("r1", 0, 2, 1, 0, True, False, np.zeros(1, np.int32)))
    harness.result(wire.Audio("r1", 0, 3, 2, 0, False, 960, 0, np.zeros(40, np.float32)))
    harness.gone.add(b"decode-3")
    harness.control(b"decode-3", wire.Heartbeat(3, 1, 0, 0))
    harness.worker("decode", 13, credit=0)
    work = harness.control(b"decode-13", wire.Grant(13, 1))[0]
    assert isinstance(work, wire.DecodeWork)
    assert (work.sentence, work.first_row, work.skip, work.seq) == (0, 0, 1000, 3)


# ---- the client's connection broke, its broker lives -----------------------------------------------------------------

BACK = b"another connection"


def test_a_client_that_comes_back_goes_on_where_it_was() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1), tokens("r1", 2, 0), audio("r1", 3, 0))
    harness.carry_out(harness.core.gone(Channel.CLIENTS, CLIENT, harness.now))
    assert harness.free
    assert harness.counted[Metric.PARKED, ""] == 1
    for worker in (b"llm-2", b"decode-3"):
        assert harness.take(worker)[-1] == wire.Abort("r1", 0)
    harness.say(replace(RESUME, seq=1, rows=480), client=BACK)
    harness.fetch()
    (generate,) = harness.take(b"llm-2")
    assert isinstance(generate, wire.GenerateWork)
    assert (generate.seq, generate.done_tokens.tolist()) == (1, tokens("r1", 2, 0).tokens.tolist())
    work, fed = harness.take(b"decode-3")
    assert isinstance(work, wire.DecodeWork)
    assert (work.seq, work.skip, fed) == (1, 480, replace(tokens("r1", 2, 0), attempt=work.attempt))
    last = replace(audio("r1", 3, 1, last=True), attempt=work.attempt)
    harness.result(replace(tokens("r1", 2, 1, last=True), attempt=generate.attempt), last)
    assert harness.take(BACK) == [last, wire.End("r1", 2, 50, 1)]


def test_late_results_of_before_the_client_came_back_are_refused() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.result(encoded("r1", 1))
    harness.say(RESUME, client=BACK)
    harness.fetch()
    harness.result(tokens("r1", 2, 0))
    assert harness.counted[Metric.REFUSED, "stale_attempt"] == 1
    assert harness.take(BACK) == []


def test_credit_given_while_the_record_is_fetched_counts() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth(output="tokens"))
    harness.result(encoded("r1", 1), tokens("r1", 2, 0), tokens("r1", 2, 1))
    harness.say(replace(RESUME, credit=0), wire.Credit("r1", 2), client=BACK)
    harness.fetch()
    assert [type(message) for message in harness.take(BACK)] == [wire.Tokens, wire.Tokens]


def test_who_comes_back_once_more_takes_its_own_place_among_those_that_wait() -> None:
    harness = Harness(max_requests=1)
    harness.stack()
    for number in range(MOST):
        assert harness.say(replace(RESUME, request_id=f"r{number}")) == []
    (error,) = harness.say(replace(RESUME, request_id="one too many"), client=BACK)
    assert isinstance(error, wire.Error)
    assert error.code == "overloaded"
    assert harness.say(replace(RESUME, request_id="r0"), client=BACK) == []


def test_nobody_cancels_what_another_key_asked_for() -> None:
    keys = {CLIENT: KEYED + b"alice", BACK: KEYED + b"mallory"}
    harness = Harness(who=keys.__getitem__)
    harness.stack()
    harness.say(synth())
    harness.gone.add(CLIENT)
    harness.carry_out(harness.core.gone(Channel.CLIENTS, CLIENT, harness.now))
    harness.say(RESUME, wire.Cancel("r1"), client=BACK)
    harness.fetch()
    assert harness.store.requests


def test_a_record_that_comes_when_its_request_is_parked_again_is_kept_for_the_client() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.say(RESUME, client=BACK)
    harness.fetch()
    harness.gone.add(BACK)
    harness.carry_out(harness.core.gone(Channel.CLIENTS, BACK, harness.now))
    harness.fetch()
    assert harness.free
    harness.say(RESUME, client=CLIENT)
    harness.fetch()
    assert not harness.free


def test_a_request_cancelled_while_its_record_is_fetched_does_not_go_on() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    (error,) = harness.say(RESUME, wire.Cancel("r1"), client=BACK)
    assert isinstance(error, wire.Error)
    assert error.code == "cancelled"
    harness.fetch()
    assert harness.take(BACK) == []
    assert harness.free
    assert not harness.store.requests


def test_a_client_may_come_back_before_the_broker_knows_that_it_was_gone() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.take(b"encode-1")
    harness.say(RESUME, client=BACK)
    assert harness.take(b"encode-1") == [wire.Abort("r1", 0)]
    harness.fetch()
    (work,) = harness.take(b"encode-1")
    assert isinstance(work, wire.EncodeWork)
    assert work.text == "Hello."
    assert harness.core.known_peers(Channel.CLIENTS) == {BACK}


def test_a_client_that_lost_only_the_end_hears_it() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth(output="tokens"))
    harness.result(encoded("r1", 1), tokens("r1", 2, 0, last=True))
    assert harness.take(CLIENT)[-1] == wire.End("r1", 1, 25, 1)
    harness.say(replace(RESUME, seq=1, rows=25), client=BACK)
    harness.fetch()
    assert harness.take(BACK) == [wire.End("r1", 1, 25, 1)]
    harness.say(wire.EndAck("r1"), client=BACK)
    assert harness.free
    assert not harness.store.requests


def test_a_client_that_lost_the_error_hears_it() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth(), wire.Cancel("r1"))
    (error,) = harness.say(RESUME, client=BACK)
    assert isinstance(error, wire.Error)
    assert error.code == "cancelled"
    assert harness.free
    assert not harness.fetches


def test_only_the_key_that_began_a_request_goes_on_with_it() -> None:
    keys = {CLIENT: b"key ann", BACK: b"key ann", b"bob": b"key bob"}
    harness = Harness(who=keys.__getitem__)
    harness.stack()
    harness.say(synth())
    (error,) = harness.say(RESUME, client=b"bob")
    assert isinstance(error, wire.Error)
    assert error.code == "unknown_request"
    assert harness.core.known_peers(Channel.CLIENTS) == {CLIENT}
    harness.carry_out(harness.core.gone(Channel.CLIENTS, CLIENT, harness.now))
    harness.say(RESUME, client=b"bob")
    harness.fetch()
    (error,) = harness.take(b"bob")
    assert isinstance(error, wire.Error)
    assert error.code == "unknown_request"
    harness.say(RESUME, client=BACK)
    harness.fetch()
    assert harness.core.known_peers(Channel.CLIENTS) == {BACK}


def test_a_request_that_another_broker_has_claimed_ends_here() -> None:
    harness = Harness()
    harness.stack()
    harness.say(synth())
    harness.carry_out(harness.core.claimed("r1", harness.now))
    error = harness.take(CLIENT)[-1]
    assert isinstance(error, wire.Error)
    assert error.code == "unknown_request"
    assert harness.core.load().active == 0
