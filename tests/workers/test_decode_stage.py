"""The decode worker's stage on the tiny reference model: sentences in order, samples counted over the request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lighttts.engine.decode import VoicePrompt
from lighttts.errors import InvalidInput, WorkerFailed
from lighttts.transport import wire
from lighttts.workers.decode import DOOMED_S, DecodeStage
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.speech import samples
from lighttts.workers.stage import Result, Work
from tests.workers.golden import SPEECH_TOKENS, decode_engine, decoded, give

RANDOM = np.random.default_rng(0)
SENTENCES = [RANDOM.integers(0, SPEECH_TOKENS, size, dtype=np.int32) for size in (61, 7, 30)]
PROMPT = 10
VOICE = VoicePrompt(
    "a voice",
    RANDOM.standard_normal(192, dtype=np.float32),
    RANDOM.integers(0, SPEECH_TOKENS, PROMPT, dtype=np.int32),
    RANDOM.standard_normal((2 * PROMPT, 80), dtype=np.float32),
)
MOST_DIFFERENCE = 1e-4
"""What sharing a batch or not may change."""


def received(message: wire.Message) -> wire.Message:
    """As it arrives: its arrays are read-only views of the frames."""
    return wire.decode([bytes(frame) for frame in wire.encode(message)])


def decode_work(
    request_id: str, *, seed: int = 1, speed: float = 1.0, output: str = "audio", sample_type: str = "f32"
) -> wire.DecodeWork:
    voice = (VOICE.key, VOICE.tokens, VOICE.mel, VOICE.embedding)
    return wire.DecodeWork(request_id, 2, seed, speed, output, sample_type, 0, 0, 0, 0, 0, 0, *voice)


def token_frames(request_id: str, sentences: list[np.ndarray], size: int = 8) -> list[wire.Tokens]:
    """The llm worker's frames of a request, `size` tokens each."""
    frames: list[wire.Tokens] = []
    for index, tokens in enumerate(sentences):
        for start in range(0, max(1, len(tokens)), size):
            final = start + size >= len(tokens)
            last = final and index == len(sentences) - 1
            part = tokens[start : start + size]
            frames.append(wire.Tokens(request_id, 2, 5, len(frames), index, final, last, part))
    return frames


def stage(streams: int = 4) -> DecodeStage:
    return DecodeStage(decode_engine(streams), epoch=9, capacity=streams)


def run(stage: DecodeStage, work: wire.DecodeWork, frames: list[wire.Tokens]) -> list[Result]:
    """Results of a request whose tokens come one frame at a time."""
    results: list[Result] = []
    give(stage, received(work))
    for frame in frames:
        give(stage, received(frame))
        while stage.busy:
            results += stage.step()
    return results


def audio_of(results: list[Result]) -> np.ndarray:
    return np.concatenate([result.message.samples for result in results if isinstance(result.message, wire.Audio)])


def test_the_audio_is_that_of_the_sentences_one_after_another_each_with_its_seed() -> None:
    results = run(stage(), decode_work("a", seed=7), token_frames("a", SENTENCES))
    expected = [decoded(tokens, VOICE, sentence_seed(7, index)) for index, tokens in enumerate(SENTENCES)]
    np.testing.assert_allclose(audio_of(results), np.concatenate(expected).clip(-1, 1), atol=MOST_DIFFERENCE)


def test_frames_are_numbered_counted_in_samples_and_tokens_and_the_last_one_ends_the_request() -> None:
    results = run(stage(), decode_work("a"), token_frames("a", SENTENCES))
    frames = [result.message for result in results]
    assert all(isinstance(frame, wire.Audio) for frame in frames)
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    starts = np.cumsum([0, *(len(frame.samples) for frame in frames)])
    assert [frame.first_sample for frame in frames] == starts[:-1].tolist()
    assert starts[-1] == sum(map(len, SENTENCES)) * 960
    assert [result.ends for result in results] == [frame.last for frame in frames]
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [frame.sentence for frame in frames] == sorted(frame.sentence for frame in frames)
    tokens = [frame.tokens for frame in frames]
    assert tokens == sorted(tokens)
    assert tokens[0] == 40
    assert tokens[-1] == sum(map(len, SENTENCES))
    assert {(frame.request_id, frame.attempt, frame.epoch) for frame in frames} == {("a", 2, 9)}


@pytest.mark.parametrize("output", ["audio", "mel"])
@pytest.mark.parametrize("sent", range(4))
def test_another_worker_goes_on_behind_any_frame_without_a_gap_or_a_repeat(output: str, sent: int) -> None:
    tokens = token_frames("a", SENTENCES)
    whole = [result.message for result in run(stage(), decode_work("a", seed=7, output=output), tokens)]
    assert len(whole) > sent
    rows = [len(frame.samples if isinstance(frame, wire.Audio) else frame.mel) for frame in whole]
    sentence = whole[sent - 1].sentence if sent else 0
    before = [index for index, frame in enumerate(whole[:sent]) if frame.sentence < sentence]
    left = [frame for frame in tokens if frame.sentence >= sentence]
    resumed = replace(
        decode_work("a", seed=7, output=output),
        sentence=sentence,
        tokens_seq=left[0].seq,
        tokens=sum(len(frame.tokens) for frame in tokens if frame.sentence < sentence),
        seq=sent,
        first_row=sum(rows[index] for index in before),
        skip=sum(rows[:sent]) - sum(rows[index] for index in before),
    )
    assert [result.message for result in run(stage(), resumed, left)] == whole[sent:]


def test_mel_streams_like_audio() -> None:
    results = run(stage(), decode_work("a", output="mel"), token_frames("a", SENTENCES))
    frames = [result.message for result in results]
    assert all(isinstance(frame, wire.Mel) for frame in frames)
    expected = [decoded(tokens, VOICE, sentence_seed(1, i), "mel") for i, tokens in enumerate(SENTENCES)]
    np.testing.assert_allclose(
        np.concatenate([frame.mel for frame in frames]), np.concatenate(expected), atol=MOST_DIFFERENCE
    )
    assert frames[-1].first_frame + len(frames[-1].mel) == 2 * sum(map(len, SENTENCES))


def test_requests_side_by_side_get_what_each_gets_alone() -> None:
    names = ["a", "b", "c"]
    worker = stage()
    streams = {name: token_frames(name, SENTENCES) for name in names}
    for seed, name in enumerate(names):
        give(worker, received(decode_work(name, seed=seed, output="mel")))
    results: list[Result] = []
    for frames in zip(*streams.values(), strict=True):
        for frame in frames:
            give(worker, received(frame))
        while worker.busy:
            results += worker.step()
    for seed, name in enumerate(names):
        alone = run(stage(), decode_work(name, seed=seed, output="mel"), streams[name])
        mine = [result for result in results if result.work.request_id == name]
        for one, other in zip(mine, alone, strict=True):
            np.testing.assert_allclose(one.message.mel, other.message.mel, atol=MOST_DIFFERENCE)
        assert [result.message.tokens for result in mine] == [result.message.tokens for result in alone]


def test_the_whole_request_may_arrive_before_its_first_hop_is_computed() -> None:
    worker = stage(streams=1)
    give(worker, received(decode_work("a")))
    for frame in token_frames("a", SENTENCES):
        give(worker, received(frame))
    results: list[Result] = []
    while worker.busy:
        results += worker.step()
    assert results[-1].ends
    assert len(audio_of(results)) == sum(map(len, SENTENCES)) * 960


def test_another_speed_gives_audio_of_another_length() -> None:
    results = run(stage(), decode_work("a", speed=2.0), token_frames("a", SENTENCES[:1]))
    assert len(audio_of(results)) == len(SENTENCES[0]) * 480
    assert results[-1].message.tokens == len(SENTENCES[0])


def test_sentences_without_tokens_are_passed_over_and_a_request_without_any_still_ends() -> None:
    empty = np.zeros(0, np.int32)
    results = run(stage(), decode_work("a"), token_frames("a", [empty, SENTENCES[1], empty]))
    assert [result.ends for result in results] == [False, True]
    assert len(audio_of(results)) == len(SENTENCES[1]) * 960
    (only,) = run(stage(), decode_work("b"), token_frames("b", [empty]))
    assert only.ends
    assert (only.message.last, len(only.message.samples), only.message.first_sample) == (True, 0, 0)


@pytest.mark.parametrize("lost", [1, 3])
def test_lost_tokens_are_an_error_and_never_a_gap_in_the_audio(lost: int) -> None:
    frames = token_frames("a", SENTENCES)
    del frames[lost]
    with pytest.raises(WorkerFailed, match=f"frame {lost + 1} of"):
        run(stage(), decode_work("a"), frames)


def test_tokens_that_are_none_of_the_models_fail_their_request_alone() -> None:
    worker = stage()
    give(worker, received(decode_work("good")))
    with pytest.raises(InvalidInput):
        run(worker, decode_work("bad"), token_frames("bad", [np.full(9, SPEECH_TOKENS, np.int32)]))
    worker.abort(Work("bad", 2))
    for frame in token_frames("good", SENTENCES[1:2]):
        give(worker, received(frame))
    assert worker.step()[-1].ends


def test_a_later_sentence_that_cannot_be_decoded_ends_its_request_with_an_error() -> None:
    bad = np.full(9, SPEECH_TOKENS, np.int32)
    worker = stage()
    give(worker, received(decode_work("a")))
    for frame in token_frames("a", [SENTENCES[1], bad]):
        give(worker, received(frame))
    results: list[Result] = []
    while worker.busy:
        results += worker.step()
    assert isinstance(results[-1].message, wire.StageFailed)
    assert (results[-1].ends, results[-1].message.code) == (True, "invalid_input")


def test_an_output_that_is_not_decoded_is_refused() -> None:
    with pytest.raises(InvalidInput, match="tokens"):
        give(stage(), received(decode_work("a", output="tokens")))


def test_an_aborted_request_gives_its_stream_back() -> None:
    worker = stage(streams=1)
    for request in ("a", "b"):
        give(worker, received(decode_work(request)))
        for frame in token_frames(request, SENTENCES)[:4]:
            give(worker, received(frame))
        worker.abort(Work(request, 2))
        worker.abort(Work(request, 2))
    assert not worker.busy
    assert run(worker, decode_work("c"), token_frames("c", SENTENCES))[-1].ends


def test_the_same_request_of_two_brokers_is_two_requests() -> None:
    worker = stage()
    works = [decode_work("a", seed=seed, output="mel") for seed in (1, 2)]
    streams = [token_frames("a", [tokens]) for tokens in SENTENCES[:2]]
    results: list[Result] = []
    for seat in (0, 1):
        give(worker, received(works[seat]), seat)
    for seat in (0, 1):
        for frame in streams[seat]:
            give(worker, received(frame), seat)
        while worker.busy:
            results += worker.step()
    for seat in (0, 1):
        alone = [result.message for result in run(stage(), works[seat], streams[seat])]
        mine = [result.message for result in results if result.work == Work("a", 2, seat)]
        for one, other in zip(mine, alone, strict=True):
            np.testing.assert_allclose(one.mel, other.mel, atol=MOST_DIFFERENCE)


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(-4, 4, width=32)))
def test_samples_are_clipped_and_int16_is_the_nearest_to_them(audio: np.ndarray) -> None:
    clipped = samples(audio, "f32")
    assert clipped.dtype == np.float32
    np.testing.assert_array_equal(clipped, np.clip(audio, -1, 1))
    converted = samples(audio, "s16")
    assert converted.dtype == np.int16
    np.testing.assert_allclose(converted / 32767, clipped, atol=0.5001 / 32767)


LONG_VOICE = replace(
    VOICE,
    key="a long voice",
    tokens=RANDOM.integers(0, SPEECH_TOKENS, 60, dtype=np.int32),
    mel=RANDOM.standard_normal((120, 80), dtype=np.float32),
)
"""Its prompt has chunks that are kept for the next request."""


def long_work(request_id: str) -> wire.DecodeWork:
    voice = {"voice_key": LONG_VOICE.key, "voice_tokens": LONG_VOICE.tokens, "voice_mel": LONG_VOICE.mel}
    return replace(decode_work(request_id), **voice)


def forget(stage: DecodeStage, *keys: str) -> None:
    stage.forget(wire.Forget("0" * 64, keys))


def test_a_removed_voice_leaves_the_cache() -> None:
    decoding = stage()
    run(decoding, long_work("a"), token_frames("a", SENTENCES))
    assert decoding._engine.cache_bytes > 0
    forget(decoding, "another voice")
    assert decoding._engine.cache_bytes > 0
    forget(decoding, LONG_VOICE.key)
    assert decoding._engine.cache_bytes == 0


def test_a_request_of_a_removed_voice_finishes_and_takes_it_along() -> None:
    decoding, undisturbed = stage(), run(stage(), long_work("a"), token_frames("a", SENTENCES))
    first, *rest = token_frames("a", SENTENCES)
    results = run(decoding, long_work("a"), [first])
    forget(decoding, LONG_VOICE.key)
    for frame in rest:
        give(decoding, received(frame))
        while decoding.busy:
            results += decoding.step()
    np.testing.assert_array_equal(audio_of(results), audio_of(undisturbed))
    assert decoding._engine.cache_bytes == 0


def test_a_late_request_of_a_removed_voice_leaves_nothing_either() -> None:
    decoding = stage()
    forget(decoding, LONG_VOICE.key)
    run(decoding, long_work("a"), token_frames("a", SENTENCES))
    assert decoding._engine.cache_bytes == 0
    give(decoding, received(long_work("b")))
    decoding.abort(Work("b", 2))
    assert decoding._engine.cache_bytes == 0


def test_a_voice_that_is_registered_again_is_kept_again_after_a_while() -> None:
    now = [0.0]
    decoding = DecodeStage(decode_engine(4), epoch=9, capacity=4, clock=lambda: now[0])
    forget(decoding, LONG_VOICE.key)
    now[0] = DOOMED_S + 1
    run(decoding, long_work("a"), token_frames("a", SENTENCES))
    assert decoding._engine.cache_bytes > 0
