"""The decode worker's stage with CosyVoice3: long silence is cut short, whoever decodes and however it comes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lighttts.config import Config, load_config
from lighttts.transport import wire
from lighttts.workers import decode
from lighttts.workers.decode import DecodeStage
from lighttts.workers.stage import Result, Work
from tests.workers.golden import GOLDEN, SPEECH_TOKENS, give
from tests.workers.test_decode_stage import VOICE, decode_work, received, run, token_frames

QUIET = 28
RANDOM = np.random.default_rng(3)
PAUSES = ([3, 60, 5], [], [0, 6, 90])
"""For each sentence the lengths of its pauses; 20 tokens of speech go before each pause and behind the last."""


def sentence(pauses: list[int]) -> np.ndarray:
    speech = RANDOM.integers(60, SPEECH_TOKENS, 20 * (len(pauses) + 1), dtype=np.int32)
    at = np.repeat(20 * np.arange(1, len(pauses) + 1), pauses)
    return np.insert(speech, at, np.int32(QUIET)).astype(np.int32)


def shorter(tokens: np.ndarray) -> np.ndarray:
    """The sentence with at most five silent tokens in a row."""
    text = "".join(map(chr, tokens.tolist()))
    while chr(QUIET) * 6 in text:
        text = text.replace(chr(QUIET) * 6, chr(QUIET) * 5)
    return np.array([*map(ord, text)], np.int32)


SENTENCES = [sentence(pauses) for pauses in PAUSES]
SHORTER = [shorter(tokens) for tokens in SENTENCES]


def config(model: str) -> Config:
    settings = [f"model.directory={GOLDEN / model}", "model.device=cpu", "decode.threads=1"]
    return load_config(overrides=settings, environ={})


def stage(model: str) -> DecodeStage:
    """The stage of a decode worker as the daemon makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "Service", lambda stage, *_: stage)
        made = decode.service(config(model))
    assert isinstance(made, DecodeStage)
    return made


@pytest.fixture(scope="module")
def worker() -> DecodeStage:
    return stage("cosyvoice3-tiny")


def messages(results: list[Result]) -> list[wire.Audio]:
    assert all(isinstance(result.message, wire.Audio) for result in results)
    return [result.message for result in results]  # type: ignore[misc]


def samples(frames: list[wire.Audio]) -> np.ndarray:
    return np.concatenate([frame.samples for frame in frames])


@pytest.mark.parametrize("size", [1, 8, 300])
@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_long_silence_is_cut_short_however_the_tokens_come(worker: DecodeStage, size: int, speed: float) -> None:
    work = decode_work("a", speed=speed)
    heard = messages(run(worker, work, token_frames("a", SENTENCES, size)))
    expected = messages(run(worker, work, token_frames("a", SHORTER, size)))
    assert [len(tokens) for tokens in SHORTER] == [93, 20, 90]
    np.testing.assert_array_equal(samples(heard), samples(expected))


def test_all_tokens_are_counted_when_their_sentence_has_ended(worker: DecodeStage) -> None:
    heard = messages(run(worker, decode_work("a"), token_frames("a", SENTENCES)))
    counts = [frame.tokens for frame in heard]
    assert counts == sorted(counts)
    last = {frame.sentence: frame.tokens for frame in heard}
    assert list(last.values()) == np.cumsum([*map(len, SENTENCES)]).tolist()


def test_a_sentence_of_nothing_but_silence_is_five_tokens_of_it(worker: DecodeStage) -> None:
    silence = np.full(50, QUIET, np.int32)
    heard = messages(run(worker, decode_work("a"), token_frames("a", [silence, silence])))
    assert len(samples(heard)) == 2 * 5 * 960


def test_the_pauses_of_a_recording_stay_as_they_are(worker: DecodeStage) -> None:
    work = replace(decode_work("a"), recorded=True)
    heard = messages(run(worker, work, token_frames("a", SENTENCES)))
    assert len(samples(heard)) == sum(map(len, SENTENCES)) * 960


def test_cosyvoice2_speaks_all() -> None:
    heard = messages(run(stage("cosyvoice2-tiny"), decode_work("a"), token_frames("a", SENTENCES)))
    assert len(samples(heard)) == sum(map(len, SENTENCES)) * 960


def test_the_prompt_of_a_voice_is_not_touched(worker: DecodeStage) -> None:
    tokens = np.full(len(VOICE.tokens), QUIET, np.int32)
    give(worker, received(replace(decode_work("a"), voice_tokens=tokens)))
    give(worker, received(token_frames("a", SENTENCES)[0]))
    (stream,) = worker._engine._streams.values()
    assert stream.voice.tokens.tolist() == tokens.tolist()
    worker.abort(Work("a", 2))


def test_another_worker_goes_on_behind_any_frame_as_if_nothing_had_happened(worker: DecodeStage) -> None:
    tokens = token_frames("a", SENTENCES)
    undisturbed = messages(run(worker, decode_work("a"), tokens))
    for sent in range(1, len(undisturbed), 2):
        number = undisturbed[sent - 1].sentence
        left = [frame for frame in tokens if frame.sentence >= number]
        before = sum(len(frame.samples) for frame in undisturbed[:sent] if frame.sentence < number)
        resumed = replace(
            decode_work("a"),
            sentence=number,
            tokens_seq=left[0].seq,
            tokens=sum(map(len, SENTENCES[:number])),
            seq=sent,
            first_row=before,
            skip=sum(len(frame.samples) for frame in undisturbed[:sent]) - before,
        )
        assert messages(run(worker, resumed, left)) == undisturbed[sent:]
