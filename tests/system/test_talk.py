"""Text that is still being written, through real daemons and the tiny reference model."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client, Talk
from lighttts.client.request import Method
from tests.system.stack import Stack

VOICE = "tiny-voice"
TEXT = (
    "It was the best of times, it was the worst of times. There were 2 cities, and in each of them people lived who "
    "knew nothing of each other! Or did they? Nobody could tell, for nobody had ever asked them about it."
)
METHODS: tuple[Method, ...] = ("sentences", "interleaved")


def pieces(size: int) -> Iterator[str]:
    for at in range(0, len(TEXT), size):
        yield TEXT[at : at + size]


def spoken(client: Client, size: int, method: Method) -> np.ndarray:
    with client.talk(VOICE, seed=4, method=method) as speech:
        for piece in pieces(size):
            speech.write(piece)
        speech.end()
        return speech.audio()


def begins(speech: Talk) -> bool:
    """Whether something is heard before more is written."""
    return any(len(chunk) for chunk in speech)


@pytest.mark.parametrize("method", METHODS)
def test_the_audio_does_not_depend_on_the_cuts(client: Client, method: Method) -> None:
    whole = spoken(client, 1000, method)
    assert len(whole) > 24_000
    for size in (1, 17):
        np.testing.assert_array_equal(spoken(client, size, method), whole)


def test_sentences_sound_as_those_of_a_whole_text(client: Client) -> None:
    text = "Good morning to all of you."
    with client.talk(VOICE, seed=4, method="sentences") as speech:
        speech.write(text)
        speech.end()
        np.testing.assert_array_equal(speech.audio(), client.synthesize(text, VOICE, seed=4).audio())


@pytest.mark.parametrize(("method", "text"), [("sentences", TEXT[:54]), ("interleaved", TEXT[:100])])
def test_speech_begins_before_the_text_has_ended(client: Client, method: Method, text: str) -> None:
    with client.talk(VOICE, seed=4, method=method, output="tokens") as speech:
        speech.write(text)
        assert begins(speech)
        speech.end()
        assert len(speech.audio())


def test_a_flush_speaks_what_there_is(client: Client) -> None:
    with client.talk(VOICE, seed=4, output="tokens") as speech:
        speech.write("It was the")
        speech.flush()
        assert begins(speech)
        speech.write("best of times")
        speech.end()
        assert len(speech.audio())


def test_an_iterable_is_spoken_as_the_model_does_best(client: Client) -> None:
    audio = client.synthesize(pieces(9), VOICE, seed=4).audio()
    np.testing.assert_array_equal(audio, spoken(client, 50, "interleaved"))


def test_nothing_but_marks_is_silence(client: Client) -> None:
    assert len(client.synthesize(["...", " - "], VOICE).audio()) == 0


def test_a_cancelled_one_frees_its_workers(client: Client) -> None:
    with client.talk(VOICE, method="interleaved") as speech:
        speech.write(TEXT[:60])
        speech.flush()
        assert begins(speech)
    deadline = time.monotonic() + 30
    while any(worker.active for worker in client.status().workers):
        assert time.monotonic() < deadline


def test_other_workers_go_on_with_it(tmp_path: Path) -> None:
    victims = ("encode", "llm", "decode")
    with Stack(tmp_path) as stack, Client(stack.endpoint, timeout=60) as client:
        expected = spoken(client, 1000, "interleaved")
        stack.start(*(f"{stage}.1" for stage in victims))
        stack.wait_for_workers(victims * 2)
        begun, chunks = threading.Event(), list[np.ndarray]()
        with client.talk(VOICE, seed=4, method="interleaved") as speech:

            def read() -> None:
                for chunk in speech:
                    chunks.append(chunk)
                    begun.set()

            reader = threading.Thread(target=read)
            reader.start()
            speech.write(TEXT[:100])
            assert begun.wait(60)
            for victim, text in zip(victims, (TEXT[100:130], TEXT[130:160], TEXT[160:]), strict=True):
                stack.signal(victim, signal.SIGKILL)
                speech.write(text)
            speech.end()
            reader.join(60)
            assert not reader.is_alive()
        # What is prefilled again rounds otherwise; the tokens are the same.
        np.testing.assert_allclose(np.concatenate(chunks), expected, atol=2e-2)
