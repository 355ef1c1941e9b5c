"""Text or speech in, speech out, through real daemons: what a request gives depends on nothing but itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.engine.decode import VoicePrompt
from lighttts.errors import InvalidInput
from lighttts.frontend.encode import ConvertJob
from tests.system.conftest import make_wav
from tests.workers.golden import VOICE, decoded, encode_engine

SAMPLES_PER_TOKEN = 960
TEXTS = [
    "Hello there.",
    "Good morning, everybody.",
    "How are you today?",
    "It rains.",
    "The quick brown fox jumps over the lazy dog.",
    "One, two, three.",
]
LONG = " ".join(["The quick brown fox jumps over the lazy dog."] * 3)


def test_audio_arrives_in_chunks_at_the_models_rate(client: Client) -> None:
    with client.synthesize(LONG, seed=1) as synthesis:
        chunks = [np.asarray(chunk) for chunk in synthesis]
        assert synthesis.sample_rate == 24000
        assert len(chunks) >= 2
        audio = np.concatenate(chunks)
        assert audio.dtype == np.float32
        assert len(audio) == synthesis.tokens * SAMPLES_PER_TOKEN
        assert np.abs(audio).max() <= 1.0


def test_the_same_seed_gives_the_same_audio_and_another_seed_another(client: Client) -> None:
    first, again, other = (client.synthesize(TEXTS[0], seed=seed).audio() for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_int16_is_the_same_audio_rounded(client: Client) -> None:
    as_float = client.synthesize(TEXTS[3], seed=2).audio()
    as_int = client.synthesize(TEXTS[3], seed=2, format="s16").audio()
    assert as_int.dtype == np.int16
    np.testing.assert_allclose(as_int / 32767.0, as_float, atol=1 / 32767)


def test_mel_and_tokens_stream_like_audio(client: Client) -> None:
    ids = client.synthesize(LONG, seed=3, output="tokens").audio()
    frames = [np.asarray(chunk) for chunk in client.synthesize(LONG, seed=3, output="mel")]
    audio = client.synthesize(LONG, seed=3).audio()
    assert ids.dtype == np.int32
    assert len(frames) >= 2
    assert np.concatenate(frames).shape == (2 * len(ids), 80)
    assert len(audio) == SAMPLES_PER_TOKEN * len(ids)


def test_a_long_text_is_one_stream_of_its_sentences(client: Client) -> None:
    with client.synthesize(LONG, seed=4) as synthesis:
        audio = synthesis.audio()
        assert len(audio) == synthesis.tokens * SAMPLES_PER_TOKEN


@pytest.mark.parametrize("prompt_text", ["hello world", ""], ids=["zero-shot", "cross-lingual"])
def test_a_prompt_lends_its_voice(client: Client, prompt_wav: bytes, prompt_text: str) -> None:
    preset = client.synthesize(TEXTS[0], seed=7).audio()
    cloned = client.synthesize(TEXTS[0], prompt=prompt_wav, prompt_text=prompt_text, seed=7).audio()
    again = client.synthesize(TEXTS[0], prompt=prompt_wav, prompt_text=prompt_text, seed=7).audio()
    np.testing.assert_array_equal(cloned, again)
    assert len(cloned) != len(preset) or not np.allclose(cloned, preset)


@pytest.mark.parametrize("cloned", [False, True], ids=["preset", "prompt"])
def test_an_instruction_is_heard_and_heard_again_the_same(client: Client, prompt_wav: bytes, cloned: bool) -> None:
    voice = {"prompt": prompt_wav} if cloned else {}
    plain = client.synthesize(TEXTS[0], seed=7, **voice).audio()
    told = client.synthesize(TEXTS[0], seed=7, instruct="in a whisper", **voice).audio()
    again = client.synthesize(TEXTS[0], seed=7, instruct="in a whisper<|endofprompt|>", **voice).audio()
    np.testing.assert_array_equal(told, again)
    assert len(told) != len(plain) or not np.allclose(told, plain)


def test_a_conversion_streams_what_the_source_says_in_the_other_voice(client: Client, prompt_wav: bytes) -> None:
    with client.convert(prompt_wav, output="mel", seed=3) as conversion:
        chunks = [np.asarray(chunk) for chunk in conversion]
    converted = encode_engine().convert(ConvertJob(prompt_wav, voice=VOICE))
    voice = VoicePrompt(converted.voice.key, converted.voice.embedding, converted.voice.tokens, converted.voice.mel)
    assert len(chunks) >= 2
    assert conversion.tokens == len(converted.tokens)
    np.testing.assert_allclose(np.concatenate(chunks), decoded(converted.tokens, voice, 3, "mel"), atol=1e-4)


def test_a_conversion_to_a_prompts_voice_is_as_long_as_its_source_and_the_same_again(
    client: Client, prompt_wav: bytes
) -> None:
    source = make_wav(0.3 * np.sin(np.arange(24000 * 4) ** 1.2 / 20), 24000)
    first, again = (client.convert(source, prompt=prompt_wav, seed=3).audio() for _ in range(2))
    other = client.convert(source, seed=3).audio()
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(other) == 4 * 25 * SAMPLES_PER_TOKEN
    assert not np.allclose(first, other)


def test_what_cannot_be_converted_is_refused_by_field(client: Client) -> None:
    for source, text in ((b"no audio", "cannot be read"), (make_wav(np.zeros(32000), 16000), "is silent")):
        with pytest.raises(InvalidInput, match=f"source audio {text}") as caught:
            client.convert(source).audio()
        assert caught.value.field == "source"


def test_speed_changes_the_length_and_nothing_else(client: Client) -> None:
    normal, fast = (client.synthesize(TEXTS[1], seed=8, speed=speed).audio() for speed in (1.0, 2.0))
    assert abs(len(fast) - len(normal) / 2) <= 480


def test_requests_at_once_give_what_each_gives_alone(client: Client) -> None:
    texts = [f"{text} Number {index}." for index in range(4) for text in TEXTS]
    solo = [client.synthesize(text, seed=index).audio() for index, text in enumerate(texts)]
    with ThreadPoolExecutor(len(texts)) as pool:
        crowd = list(pool.map(lambda item: client.synthesize(item[1], seed=item[0]).audio(), enumerate(texts)))
    for alone, among in zip(solo, crowd, strict=True):
        np.testing.assert_allclose(among, alone, atol=2e-3)


def test_a_closed_stream_frees_every_stage(client: Client) -> None:
    synthesis = client.synthesize(LONG, seed=9)
    next(synthesis)
    synthesis.close()
    capacity = {"encode": 4, "llm": 32, "decode": 64}
    deadline = time.monotonic() + 30
    while (status := client.status()).active or {row.stage: row.credit for row in status.workers} != capacity:
        assert time.monotonic() < deadline, status


def test_the_voices_of_the_model_are_listed(client: Client) -> None:
    assert client.voices() == ("tiny-voice",)
