"""Bad input: one typed error with a sentence that says what to do, and the daemons go on serving."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.errors import InvalidInput, LightTTSError, UnknownVoice
from tests.system.conftest import make_wav
from tests.system.stack import Stack

TONE = 0.3 * np.sin(np.arange(16000 * 2) * 0.1)
BAD_PROMPTS = {
    "no audio": b"this is not audio" * 100,
    "empty": b"",
    "too long": make_wav(np.tile(TONE, 16), 16000),
    "silent": make_wav(np.zeros(16000 * 3), 16000),
    "8 kHz": make_wav(TONE[:16000], 8000),
    "truncated": make_wav(TONE, 16000)[:30],
}


@pytest.fixture(autouse=True)
def _still_serving(client: Client, stack: Stack) -> Iterator[None]:
    yield
    assert len(client.synthesize("Still here.", seed=1).audio()) > 0
    assert all(process.poll() is None for process in stack.processes.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" \n\t ", "empty|white"),
        ("x" * 100_000, "20,?000"),
        ("...!?", "punctuation|spoken|speak"),
        ("\x00\x01\x02", "empty|control|speak|spoken"),
        ("\ud800", "surrogate|UTF-8|Unicode"),
    ],
    ids=["empty", "white space", "100,000 characters", "punctuation", "control characters", "lone surrogate"],
)
def test_text_that_cannot_be_spoken(client: Client, text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?i){says}"):
        client.synthesize(text, seed=1).audio()


@pytest.mark.parametrize("prompt", BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_prompt_that_is_no_voice(client: Client, prompt: bytes) -> None:
    with pytest.raises(InvalidInput):
        client.synthesize("Hello.", prompt=prompt, seed=1).audio()


def test_an_unknown_voice_names_those_there_are(client: Client) -> None:
    with pytest.raises(UnknownVoice, match="tiny-voice"):
        client.synthesize("Hello.", voice="tiny-vioce", seed=1).audio()


def test_voice_and_prompt_together(client: Client, prompt_wav: bytes) -> None:
    with pytest.raises(InvalidInput):
        client.synthesize("Hello.", voice="tiny-voice", prompt=prompt_wav).audio()


@pytest.mark.parametrize("speed", [0.0, 0.49, 2.01, float("nan")])
def test_a_speed_out_of_range(client: Client, speed: float) -> None:
    with pytest.raises(LightTTSError):
        client.synthesize("Hello.", speed=speed).audio()
