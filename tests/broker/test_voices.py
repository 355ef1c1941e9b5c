"""Registered voices at the broker: checked before they are kept, spoken with by name, their owner's alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lighttts.broker.instructions import Metric
from lighttts.broker.outbox import Channel
from lighttts.broker.quota import KEYED
from lighttts.broker.voice_inquiries import QUESTIONS
from lighttts.broker.voices import EXPORTS_A_MINUTE
from lighttts.errors import InvalidInput, Unavailable
from lighttts.transport import wire
from tests.broker.harness import CLIENT, Harness, convert, encoded, synth

WAV = b"RIFF of anna"
OTHER = b"RIFF of bert"
KEY = "features of anna"


def add(name: str = "mine", **changes: object) -> wire.AddVoice:
    message = wire.AddVoice(7, "", name, "What I say.", shared=False, replace=False, prompt=WAV)
    return replace(message, **changes)  # type: ignore[arg-type]


def act(action: str, name: str = "mine", to: str = "", owner: str = "") -> wire.VoiceAction:
    return wire.VoiceAction(8, owner, action, name, to)


def check(harness: Harness) -> wire.CheckWork:
    """The check that the encode worker is given."""
    (work,) = harness.take(b"encode-1")
    assert isinstance(work, wire.CheckWork)
    return work


def features(request_id: str, key: str = KEY) -> wire.Encoded:
    """The encode worker's answer to a check."""
    made = encoded(request_id, 1)
    return replace(made, lengths=(), text_ids=made.text_ids[:0], voice_key=key)


def register(harness: Harness, message: wire.AddVoice, client: bytes = CLIENT) -> wire.Message:
    """Adds a voice whose recording is good; returns the answer."""
    said = harness.say(message, client=client)
    if said:
        return said[0]
    harness.result(features(check(harness).request_id))
    (answer,) = harness.take(client)
    harness.control(b"encode-1", wire.Grant(1, 1))
    return answer


def failed(answer: wire.Message) -> str:
    """The code of a failure."""
    assert isinstance(answer, wire.VoiceFailed), answer
    return answer.code


def said(harness: Harness, message: wire.Message, client: bytes = CLIENT) -> wire.Message:
    """The one answer to a question."""
    (answer,) = harness.say(message, client=client)
    return answer


@pytest.fixture
def harness() -> Harness:
    """A broker with workers, whose preset voice is anna."""
    harness = Harness(wall=lambda: 5000.0)
    harness.stack()
    return harness


@pytest.fixture
def keyed() -> Harness:
    """The same where clients have keys: alice, bob, and gate, a gateway."""
    harness = Harness(who=lambda client: KEYED + client, gateways=("gate",))
    harness.stack()
    return harness


def test_a_voice_is_checked_by_an_encode_worker_and_then_kept(harness: Harness) -> None:
    assert harness.say(add()) == []
    work = check(harness)
    assert (work.prompt, work.prompt_text) == (WAV, "What I say.")
    assert not harness.shelf.kept
    harness.result(features(work.request_id))
    (done,) = harness.take(CLIENT)
    assert isinstance(done, wire.VoiceDone)
    assert (done.query_id, done.prompt_text, done.prompt) == (7, "What I say.", b"")
    assert done.voice[:5] == ("mine", "", False, 5000.0, len(WAV))
    assert harness.free
    assert harness.store.requests == {}


def test_a_recording_that_cannot_be_used_is_refused_with_the_workers_words(harness: Harness) -> None:
    harness.say(add())
    request_id = check(harness).request_id
    harness.result(wire.StageFailed(request_id, 0, 1, "invalid_input", "it is silent", "prompt", False))
    (answer,) = harness.take(CLIENT)
    assert answer == wire.VoiceFailed(7, "invalid_input", "it is silent", "prompt", False, 0)
    assert not harness.shelf.kept
    assert harness.free


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"name": "anna"}, "voice_exists", "name"),
        ({"name": " mine"}, "invalid_input", "name"),
        ({"name": "../mine"}, "invalid_input", "name"),
        ({"prompt": b""}, "invalid_input", "prompt"),
    ],
    ids=["preset", "space", "path", "empty"],
)
def test_what_is_wrong_at_once_is_told_at_once(
    harness: Harness, wrong: dict[str, object], code: str, field: str
) -> None:
    answer = said(harness, add(**wrong))
    assert isinstance(answer, wire.VoiceFailed)
    assert (answer.code, answer.field) == (code, field)
    assert harness.take(b"encode-1") == []


def test_the_check_of_a_lost_worker_is_done_by_another(harness: Harness) -> None:
    harness.say(add())
    first = check(harness)
    harness.worker("encode", 11)
    harness.carry_out(harness.core.gone(harness.core._board.workers.get(b"encode-1", 1).outbox.channel, b"encode-1", 0))
    (again,) = harness.take(b"encode-11")
    assert (again.request_id, again.attempt) == (first.request_id, 1)


def test_without_workers_that_know_how_to_check_it_fails_in_time() -> None:
    harness = Harness(no_worker_s=2.0)
    harness.worker("encode", 1, version=2)
    assert harness.say(add()) == []
    harness.pass_time(3, alive=[(b"encode-1", 1)])
    assert failed(harness.take(CLIENT)[-1]) == "no_worker"


def test_a_client_that_leaves_leaves_no_check_behind(harness: Harness) -> None:
    harness.say(add())
    work = check(harness)
    harness.gone.add(CLIENT)
    harness.tick(3)
    assert harness.take(b"encode-1") == [wire.Abort(work.request_id, 0)]
    assert harness.free


def test_a_name_is_taken_until_it_is_to_be_replaced(harness: Harness) -> None:
    register(harness, add())
    assert failed(register(harness, add(prompt=OTHER))) == "voice_exists"
    assert isinstance(register(harness, add(prompt=OTHER, replace=True)), wire.VoiceDone)
    assert [content for _, content in harness.shelf.kept.values()] == [OTHER]


def test_adding_the_same_once_more_is_no_mistake(harness: Harness) -> None:
    register(harness, add())
    assert isinstance(register(harness, add()), wire.VoiceDone)


def test_a_request_speaks_with_the_recording_and_its_text(harness: Harness) -> None:
    register(harness, add())
    harness.say(synth(voice="mine"))
    (work,) = harness.take(b"encode-1")
    assert (work.voice, work.prompt, work.prompt_text) == ("", WAV, "What I say.")


def test_an_instruction_takes_the_place_of_the_text(harness: Harness) -> None:
    register(harness, add())
    harness.say(synth(voice="mine", instruct="in a whisper"))
    (work,) = harness.take(b"encode-1")
    assert (work.prompt, work.prompt_text, work.instruct) == (WAV, "", "in a whisper")


def test_a_conversion_speaks_with_it_too(harness: Harness) -> None:
    register(harness, add())
    harness.say(convert(voice="mine"))
    (work,) = harness.take(b"encode-1")
    assert (work.voice, work.prompt, work.source) == ("", WAV, b"RIFF")


def test_a_preset_voice_needs_no_store(harness: Harness) -> None:
    harness.voices_answer = False
    harness.say(synth())
    (work,) = harness.take(b"encode-1")
    assert work.voice == "anna"
    assert harness.questions == []


def test_of_a_name_that_nobody_knows_the_encode_worker_says_what_there_is(harness: Harness) -> None:
    harness.say(synth(voice="nobody"))
    (work,) = harness.take(b"encode-1")
    assert (work.voice, work.prompt) == ("nobody", b"")


def test_the_recording_is_not_in_the_requests_record(harness: Harness) -> None:
    register(harness, add())
    harness.say(synth(voice="mine"))
    (saved,) = harness.store.requests.values()
    assert not any(WAV in bytes(frame) for frame in saved.synth)


def test_a_store_that_fails_is_told_and_streams_go_on(harness: Harness) -> None:
    harness.say(synth("streaming"))
    harness.result(encoded("streaming", 1))
    harness.take(CLIENT)
    harness.voices_trouble = Unavailable("the voices cannot be had", retry_after=2.0)
    assert failed(said(harness, act("show"))) == "unavailable"
    *_, error = harness.say(synth(voice="mine"))
    assert isinstance(error, wire.Error)
    assert (error.code, error.retryable, error.retry_after_ms) == ("unavailable", True, 2000)
    assert said(harness, wire.ListVoices(1)) == wire.Voices(1, 24000, ("anna",))
    assert "streaming" in harness.core._board.requests.live


def test_a_request_that_is_cancelled_while_its_voice_is_looked_for_stays_cancelled(harness: Harness) -> None:
    register(harness, add())
    harness.voices_answer = False
    harness.say(synth(voice="mine"))
    harness.say(wire.Cancel("r1"), wire.EndAck("r1"))
    harness.answer_voices()
    assert harness.take(b"encode-1") == []
    assert harness.free


def test_a_voice_is_shown_exported_renamed_and_removed(harness: Harness) -> None:
    register(harness, add())
    shown, export = said(harness, act("show")), said(harness, act("export"))
    assert isinstance(shown, wire.VoiceDone)
    assert isinstance(export, wire.VoiceDone)
    assert (shown.prompt, export.prompt, export.voice) == (b"", WAV, shown.voice)
    renamed = said(harness, act("rename", to="yours"))
    assert isinstance(renamed, wire.VoiceDone)
    assert renamed.voice.name == "yours"
    assert failed(said(harness, act("show"))) == "unknown_voice"
    assert isinstance(said(harness, act("remove", "yours")), wire.VoiceDone)
    assert harness.shelf.kept == {}


@pytest.mark.parametrize("asked", [act("rename", "anna", "mine"), act("remove", "anna")])
def test_a_preset_voice_stays(harness: Harness, asked: wire.VoiceAction) -> None:
    assert failed(said(harness, asked)) == "voice_exists"


def test_no_voice_takes_a_preset_ones_name(harness: Harness) -> None:
    register(harness, add())
    assert failed(said(harness, act("rename", to="anna"))) == "voice_exists"


def test_lists_have_preset_voices_first(harness: Harness) -> None:
    register(harness, add("a voice"))
    assert said(harness, wire.ListVoices(1)) == wire.Voices(1, 24000, ("anna", "a voice"))
    rows = said(harness, act("list", ""))
    assert isinstance(rows, wire.VoiceList)
    assert [row.name for row in rows.voices] == ["a voice"]


def test_a_removed_voice_is_forgotten_by_those_who_keep_something_of_it(harness: Harness) -> None:
    register(harness, add())
    harness.say(synth(voice="mine"))
    harness.result(replace(encoded("r1", 1), voice_key="features on another machine"))
    for worker in (b"encode-1", b"llm-2", b"decode-3"):
        harness.take(worker)
    harness.say(act("remove"))
    row, same = harness.take(b"encode-1") + harness.take(b"decode-3")
    assert row == same
    assert isinstance(row, wire.Forget)
    assert row.voice_keys == (KEY, "features on another machine")
    assert harness.take(b"llm-2") == []


def test_a_request_under_way_finishes_and_what_it_leaves_is_forgotten_then(harness: Harness) -> None:
    register(harness, add())
    harness.say(synth(voice="mine"))
    harness.take(b"encode-1")
    harness.say(act("remove"))
    harness.take(b"encode-1")
    harness.result(encoded("r1", 1))
    assert [type(message) for message in harness.take(b"encode-1")] == [wire.Forget]
    assert [type(message) for message in harness.take(b"llm-2")] == [wire.GenerateWork]


def test_replacing_forgets_what_was_there(harness: Harness) -> None:
    register(harness, add())
    register(harness, add(prompt=OTHER, replace=True))
    assert [type(message) for message in harness.take(b"decode-3")] == [wire.Forget]


def test_a_worker_of_an_older_version_is_not_told(harness: Harness) -> None:
    harness.worker("decode", 13, version=2)
    register(harness, add())
    harness.say(act("remove"))
    assert harness.take(b"decode-13") == []


def test_a_voice_is_its_owners_alone(keyed: Harness) -> None:
    register(keyed, add(), client=b"alice")
    assert failed(said(keyed, act("show"), client=b"bob")) == "unknown_voice"
    assert failed(said(keyed, act("remove"), client=b"bob")) == "unknown_voice"
    assert said(keyed, wire.ListVoices(1), client=b"bob") == wire.Voices(1, 24000, ("anna",))
    keyed.say(synth(voice="mine"), client=b"bob")
    (work,) = keyed.take(b"encode-1")
    assert work.prompt == b""
    keyed.say(synth("r2", voice="mine"), client=b"alice")
    (work,) = keyed.take(b"encode-1")
    assert work.prompt == WAV


def test_a_shared_voice_is_for_all_to_use_and_its_owners_to_change(keyed: Harness) -> None:
    register(keyed, add(shared=True), client=b"alice")
    assert isinstance(said(keyed, act("export"), client=b"bob"), wire.VoiceDone)
    assert failed(said(keyed, act("remove"), client=b"bob")) == "forbidden"
    assert failed(said(keyed, act("rename", to="his"), client=b"bob")) == "forbidden"
    assert failed(register(keyed, add(shared=True), client=b"bob")) == "voice_exists"
    assert isinstance(said(keyed, act("remove"), client=b"alice"), wire.VoiceDone)


def test_ones_own_voice_goes_before_a_shared_one(keyed: Harness) -> None:
    register(keyed, add(shared=True), client=b"alice")
    register(keyed, add(prompt=OTHER), client=b"bob")
    keyed.say(synth(voice="mine"), client=b"bob")
    (work,) = keyed.take(b"encode-1")
    assert work.prompt == OTHER


def test_a_gateway_acts_for_those_it_serves_and_they_are_not_keys_of_that_name(keyed: Harness) -> None:
    done = register(keyed, add(owner="alice"), client=b"gate")
    assert isinstance(done, wire.VoiceDone)
    assert done.voice.owner == "api/alice"
    assert failed(said(keyed, act("show"), client=b"alice")) == "unknown_voice"
    assert failed(said(keyed, act("show", owner="bob"), client=b"gate")) == "unknown_voice"
    assert isinstance(said(keyed, act("show", owner="alice"), client=b"gate"), wire.VoiceDone)
    keyed.say(synth(voice="mine", owner="alice"), client=b"gate")
    (work,) = keyed.take(b"encode-1")
    assert work.prompt == WAV


def test_who_is_no_gateway_acts_for_nobody_else(keyed: Harness) -> None:
    assert failed(said(keyed, add(owner="alice"), client=b"bob")) == "forbidden"
    assert failed(said(keyed, act("show", owner="alice"), client=b"bob")) == "forbidden"
    *_, error = keyed.say(synth(voice="mine", owner="alice"), client=b"bob")
    assert isinstance(error, wire.Error)
    assert error.code == "forbidden"


def test_a_preset_voice_may_be_asked_for_on_behalf_of_anybody(keyed: Harness) -> None:
    keyed.say(synth(owner="alice"), client=b"bob")
    (work,) = keyed.take(b"encode-1")
    assert work.voice == "anna"
    assert said(keyed, wire.ListVoices(1, "alice"), client=b"bob") == wire.Voices(1, 24000, ("anna",))


def test_an_encode_worker_of_version_2_takes_requests_of_a_gateways_users(keyed: Harness) -> None:
    keyed.worker("encode", 11, version=2, credit=100)
    keyed.say(synth(owner="alice"), client=b"gate")
    assert [type(work) for work in keyed.take(b"encode-11")] == [wire.EncodeWork]


def test_quotas_are_counted_by_owner_and_in_all(keyed: Harness) -> None:
    for name in ("1", "2", "3"):
        assert isinstance(register(keyed, add(name), client=b"alice"), wire.VoiceDone)
    assert failed(register(keyed, add("4"), client=b"alice")) == "quota_exceeded"
    for name in ("1", "2"):
        assert isinstance(register(keyed, add(name), client=b"bob"), wire.VoiceDone)
    assert failed(register(keyed, add("3"), client=b"bob")) == "quota_exceeded"


def test_adding_counts_as_a_request(harness: Harness) -> None:
    register(harness, add())
    assert harness.counted[Metric.REQUESTS, "voice"] == 1
    few = Harness(client_requests_per_minute=1)
    few.stack()
    register(few, add())
    assert failed(said(few, add("another"))) == "overloaded"


def test_no_client_fills_the_stores_line(harness: Harness) -> None:
    harness.voices_answer = False
    answers = harness.say(*[act("show")] * (QUESTIONS + 1))
    assert [failed(answer) for answer in answers] == ["overloaded"]
    assert said(harness, wire.ListVoices(1)) == wire.Voices(1, 24000, ("anna",))
    assert harness.say(act("show"), client=b"another") == []


def test_who_waits_for_the_store_is_not_forgotten_meanwhile(harness: Harness) -> None:
    harness.voices_answer = False
    harness.say(wire.ListVoices(1))
    assert harness.core.known_peers(Channel.CLIENTS) == {CLIENT}
    harness.answer_voices()
    assert harness.core.known_peers(Channel.CLIENTS) == set()


def test_a_lost_recording_ends_the_request_with_what_mends_it(harness: Harness) -> None:
    harness.voices_trouble = InvalidInput("add the voice again", field="voice")
    *_, error = harness.say(synth(voice="mine"))
    assert isinstance(error, wire.Error)
    assert (error.code, error.field) == ("invalid_input", "voice")


def test_exports_which_nobody_grants_credit_for_are_few(harness: Harness) -> None:
    register(harness, add())
    answers = harness.say(*[act("export")] * (EXPORTS_A_MINUTE + 1))
    assert failed(answers[-1]) == "overloaded"
    assert isinstance(answers[-2], wire.VoiceDone)


def test_a_recording_that_waits_to_be_written_counts_as_held(harness: Harness) -> None:
    harness.voices_answer = False
    harness.say(add())
    harness.result(features(check(harness).request_id))
    assert harness.core._board.prompts.used == len(WAV)
    harness.answer_voices()
    assert harness.core._board.prompts.used == 0


def test_a_broker_that_ends_tells_who_waits(harness: Harness) -> None:
    harness.say(add())
    harness.carry_out(harness.core.abandon(harness.now))
    assert failed(harness.take(CLIENT)[-1]) == "unavailable"


def test_a_resumed_request_finds_its_voice_again() -> None:
    harness = Harness(durable=True)
    harness.stack()
    register(harness, add())
    harness.say(synth(voice="mine"))
    harness.stored("r1")
    harness.take(b"encode-1")
    harness.say(wire.Resume("r1", True, 0, 0, 100), client=b"back")
    harness.fetch()
    (abort, work) = harness.take(b"encode-1")
    assert isinstance(abort, wire.Abort)
    assert work.prompt == WAV
