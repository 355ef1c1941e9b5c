"""A request from `Synth` to `EndAck`, through all stages."""

from __future__ import annotations

import numpy as np
import pytest

from lighttts.broker.instructions import Metric
from lighttts.broker.outbox import Budget, Channel, Outbox
from lighttts.broker.requests import CLOSED, TRANSITIONS, Request, State
from lighttts.errors import InternalError, Unavailable
from lighttts.transport import wire
from tests.broker.harness import CLIENT, SAMPLE_RATE, Harness, audio, encoded, mel, raw, synth, tokens


@pytest.fixture
def stack() -> Harness:
    """A core with one worker of each stage: encode (epoch 1), llm (2), decode (3)."""
    harness = Harness()
    harness.stack()
    return harness


def test_text_goes_in_and_audio_comes_out(stack: Harness) -> None:
    assert stack.say(synth(seed=99, speed=1.5, sample_type="s16")) == [wire.Accepted("r1", SAMPLE_RATE)]
    assert stack.take(b"encode-1") == [wire.EncodeWork("r1", 0, "Hello.", "anna", "", b"")]
    result = encoded("r1", 1)
    stack.result(result)
    assert stack.take(b"llm-2") == [
        wire.GenerateWork(
            "r1",
            0,
            99,
            0,
            0,
            result.lengths,
            result.text_ids,
            result.prompt_text_ids,
            result.llm_prompt_tokens,
            np.zeros(0, np.int32),
        )
    ]
    assert not stack.take(b"decode-3")
    first, last = tokens("r1", 2, 0), tokens("r1", 2, 1, last=True, count=10)
    stack.result(first)
    voice = ("key", result.voice_tokens, result.voice_mel, result.voice_embedding)
    work = wire.DecodeWork("r1", 0, 99, 1.5, "audio", "s16", 0, 0, 0, 0, 0, 0, *voice)
    assert stack.take(b"decode-3") == [work, first]
    stack.result(last)
    assert stack.take(b"decode-3") == [last]
    frames = [audio("r1", 3, 0), audio("r1", 3, 1, last=True)]
    stack.result(*frames)
    assert stack.take(CLIENT) == [*frames, wire.End("r1", frames=2, tokens=35, sentences=1)]
    assert not stack.free
    stack.say(wire.EndAck("r1"))
    assert stack.free


def test_relayed_frames_are_the_very_bytes_received(stack: Harness) -> None:
    stack.say(synth())
    stack.result(encoded("r1", 1), tokens("r1", 2, 0, last=True))
    stack.take(CLIENT)
    frames = raw(audio("r1", 3, 0))
    stack.carry_out(stack.core.result(frames, stack.now))
    assert stack.mail[CLIENT] == [frames]
    assert all(sent is received for sent, received in zip(stack.mail[CLIENT][0], frames, strict=True))


def test_mel_output_comes_as_mel_frames(stack: Harness) -> None:
    stack.say(synth(output="mel"))
    stack.result(encoded("r1", 1), tokens("r1", 2, 0, last=True), mel("r1", 3, 0, last=True))
    frame, end = stack.take(CLIENT)
    assert frame == mel("r1", 3, 0, last=True)
    assert end == wire.End("r1", 1, 25, 1)


def test_token_output_needs_no_decode_worker() -> None:
    harness = Harness()
    harness.worker("encode", 1)
    harness.worker("llm", 2)
    harness.say(synth(output="tokens"))
    harness.result(encoded("r1", 1), tokens("r1", 2, 0), tokens("r1", 2, 1, last=True, count=0))
    assert harness.take(CLIENT) == [
        tokens("r1", 2, 0),
        tokens("r1", 2, 1, last=True, count=0),
        wire.End("r1", 2, 25, 1),
    ]
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_tokens_wait_for_a_decode_worker_and_then_arrive_in_order() -> None:
    harness = Harness()
    harness.worker("encode", 1)
    harness.worker("llm", 2)
    harness.say(synth())
    made = [tokens("r1", 2, 0), tokens("r1", 2, 1), tokens("r1", 2, 2, last=True)]
    harness.result(encoded("r1", 1), *made)
    decode = harness.core.worker_message(
        b"d", raw(wire.Register("d", 3, "decode", "", "", SAMPLE_RATE, ())), harness.now
    )
    harness.carry_out(decode)
    messages = harness.control(b"d", wire.Grant(3, 1))
    assert isinstance(messages[1], wire.DecodeWork)
    assert messages[2:] == made


def test_decoding_stays_with_the_worker_that_began_it(stack: Harness) -> None:
    stack.say(synth())
    stack.result(encoded("r1", 1), tokens("r1", 2, 0))
    stack.worker("decode", 4, credit=50)
    stack.result(tokens("r1", 2, 1))
    assert not stack.take(b"decode-4")
    assert len(stack.take(b"decode-3")) == 3


def test_acceptance_waits_until_a_worker_tells_the_sample_rate() -> None:
    harness = Harness()
    assert harness.say(synth()) == []
    harness.stack()
    assert harness.take(CLIENT) == [wire.Accepted("r1", SAMPLE_RATE)]


def test_everything_a_takeover_needs_is_stored_on_the_way(stack: Harness) -> None:
    stack.say(synth())
    saved = stack.store.requests["r1"]
    assert (saved.client, wire.decode(saved.synth), saved.state) == (CLIENT, synth(), "encoding")
    stack.result(encoded("r1", 1))
    assert (wire.decode(saved.encoded), saved.state) == (encoded("r1", 1), "generating")
    stack.result(tokens("r1", 2, 0), tokens("r1", 2, 1, last=True))
    assert [wire.decode(saved.tokens[seq]) for seq in (0, 1)] == [tokens("r1", 2, 0), tokens("r1", 2, 1, last=True)]
    assert saved.state == "decoding"
    stack.result(audio("r1", 3, 0, last=True))
    assert saved.state == "ending"
    stack.say(wire.EndAck("r1"))
    assert stack.deleted == ["r1"]


def test_a_durable_request_is_accepted_only_when_its_record_is_safe() -> None:
    harness = Harness(durable=True)
    harness.stack()
    assert harness.say(synth()) == []
    assert not harness.take(b"encode-1")
    harness.stored("r1")
    assert harness.take(CLIENT) == [wire.Accepted("r1", SAMPLE_RATE)]
    assert len(harness.take(b"encode-1")) == 1


def test_a_record_that_cannot_be_written_fails_its_request() -> None:
    harness = Harness(durable=True)
    harness.stack()
    harness.say(synth())
    harness.stored("r1", Unavailable("no space"))
    (error,) = harness.take(CLIENT)
    assert isinstance(error, wire.Error)
    assert (error.request_id, error.code, error.retryable) == ("r1", "unavailable", True)
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_an_answer_of_the_store_that_comes_too_late_changes_nothing() -> None:
    harness = Harness(durable=True)
    harness.stack()
    harness.say(synth(), wire.Cancel("r1"))
    harness.stored("r1")
    assert not harness.take(b"encode-1")
    harness.say(wire.EndAck("r1"))
    assert harness.free


def test_late_answers_of_the_store_do_not_disturb_a_new_request_of_the_same_id() -> None:
    harness = Harness(durable=True)
    harness.stack()
    harness.say(synth(), wire.Cancel("r1"), wire.EndAck("r1"), synth())
    harness.stored("r1")
    harness.stored("r1")
    assert len(harness.take(b"encode-1")) == 1


def test_times_are_measured(stack: Harness) -> None:
    stack.say(synth())
    stack.now += 0.1
    stack.result(encoded("r1", 1))
    stack.now += 0.2
    stack.result(tokens("r1", 2, 0, last=True))
    stack.now += 0.4
    stack.result(audio("r1", 3, 0, samples=SAMPLE_RATE))
    stack.now += 0.5
    stack.result(audio("r1", 3, 1, samples=SAMPLE_RATE))
    stack.now += 2.0
    stack.result(audio("r1", 3, 2, samples=SAMPLE_RATE, last=True))
    seen = stack.observed
    assert seen[Metric.STAGE] == pytest.approx([0.1, 0.2, 2.9])
    assert seen[Metric.FIRST_AUDIO] == pytest.approx([0.7])
    assert seen[Metric.CHUNK_INTERVAL] == pytest.approx([0.5, 2.0])
    assert seen[Metric.REAL_TIME_FACTOR] == pytest.approx([3.2 / 3])
    assert seen[Metric.DURATION] == pytest.approx([3.2])
    assert stack.counted[Metric.UNDERRUNS, ""] == 1
    stack.tick()
    assert stack.counted[Metric.FRAMES, "audio"] == 3
    assert stack.counted[Metric.FRAMES, "tokens"] == 1


def test_a_frame_without_audio_is_no_audio_that_was_waited_for(stack: Harness) -> None:
    stack.say(synth())
    stack.result(encoded("r1", 1), tokens("r1", 2, 0, last=True))
    stack.now += 0.4
    stack.result(audio("r1", 3, 0, samples=0))
    stack.now += 0.5
    stack.result(audio("r1", 3, 1, samples=SAMPLE_RATE))
    stack.now += 3.0
    stack.result(audio("r1", 3, 2, samples=0, last=True))
    assert stack.observed[Metric.FIRST_AUDIO] == pytest.approx([0.9])
    assert stack.observed[Metric.CHUNK_INTERVAL] == []
    assert stack.counted[Metric.UNDERRUNS, ""] == 0


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "preset"),
        ({"voice": "", "prompt": b"RIFF"}, "cross_lingual"),
        ({"voice": "", "prompt": b"RIFF", "prompt_text": "Hi."}, "zero_shot"),
        ({"instruct": "in a whisper"}, "instruct"),
        ({"voice": "", "prompt": b"RIFF", "instruct": "in a whisper"}, "instruct"),
    ],
)
def test_requests_are_counted_by_what_is_asked_for(stack: Harness, changes: dict[str, object], method: str) -> None:
    stack.say(synth(**changes))
    assert stack.counted[Metric.REQUESTS, method] == 1


def test_prompt_audio_reaches_the_encode_worker_and_is_freed_after(stack: Harness) -> None:
    stack.say(synth(voice="", prompt=b"RIFF" * 100, prompt_text="Hi."))
    assert stack.take(b"encode-1") == [wire.EncodeWork("r1", 0, "Hello.", "", "Hi.", b"RIFF" * 100)]
    assert stack.core._board.prompts.used == 400
    stack.result(encoded("r1", 1))
    assert stack.core._board.prompts.used == 0
    assert stack.core._board.requests.live["r1"].asked.prompt == b""


def test_an_instruction_reaches_the_encode_worker(stack: Harness) -> None:
    stack.say(synth(instruct="in a whisper"))
    assert stack.take(b"encode-1") == [wire.EncodeWork("r1", 0, "Hello.", "anna", "", b"", "in a whisper")]


def test_a_state_that_the_table_does_not_allow_raises_with_the_history() -> None:
    request = Request("r1", CLIENT, synth(), Outbox(Channel.CLIENTS, CLIENT, Budget(0)), received=0.0, deadline=1.0)
    request.move(State.ADMITTED, 1.0)
    request.move(State.ENCODING, 2.0)
    with pytest.raises(
        InternalError, match=r"r1 cannot go from encoding to ending; before: 1\.000:received 2\.000:adm"
    ):
        request.move(State.ENDING, 3.0)
    assert request.state is State.ENCODING


def test_every_state_can_be_reached_and_left_and_live_ones_can_fail() -> None:
    reached = {State.RECEIVED}
    while (more := reached.union(*(TRANSITIONS[state] for state in reached))) != reached:
        reached = more
    assert reached == set(State)
    assert [state for state in State if not TRANSITIONS[state]] == [State.PARKED, State.FORGOTTEN]
    assert all(
        {State.FAILED, State.CANCELLED, State.PARKED} <= TRANSITIONS[state] for state in State if state not in CLOSED
    )


def test_a_voiceless_zero_length_request_still_ends(stack: Harness) -> None:
    stack.say(synth())
    stack.result(encoded("r1", 1), tokens("r1", 2, 0, last=True, count=0), audio("r1", 3, 0, last=True, samples=0))
    assert stack.take(CLIENT)[-1] == wire.End("r1", 1, 0, 1)
    assert not stack.observed[Metric.REAL_TIME_FACTOR]
