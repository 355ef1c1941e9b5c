"""A CosyVoice3 directory through real daemons, in every mode: the stages are those of CosyVoice2."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from tests.models.test_silence import whole
from tests.system.conftest import make_wav
from tests.system.stack import Stack
from tests.talkative import TINY, hushed, talkative

SAMPLES_PER_TOKEN = 960
TEXT = "The quick brown fox jumps over the lazy dog, and how are you today?"


@pytest.fixture(scope="module")
def stack3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("s3")
    with Stack(folder, model=talkative(folder / "model")) as running:
        yield running


@pytest.fixture
def client(stack3: Stack) -> Iterator[Client]:
    with Client(stack3.endpoint, timeout=60) as connected:
        yield connected


MODES: dict[str, dict[str, object]] = {
    "preset": {},
    "instruct": {"instruct": "in a whisper"},
    "zero-shot": {"prompt": b"", "prompt_text": "hello world"},
    "cross-lingual": {"prompt": b""},
    "instruct as in a prompt": {"prompt": b"", "instruct": "in a whisper"},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_speaks_and_speaks_again_the_same(client: Client, prompt_wav: bytes, mode: str) -> None:
    options = {key: value or prompt_wav for key, value in MODES[mode].items()}
    with client.synthesize(TEXT, seed=5, **options) as synthesis:
        audio = synthesis.audio()
    assert len(audio) == synthesis.tokens * SAMPLES_PER_TOKEN > 0
    np.testing.assert_array_equal(client.synthesize(TEXT, seed=5, **options).audio(), audio)


def test_modes_differ(client: Client, prompt_wav: bytes) -> None:
    tokens = [
        client.synthesize(TEXT, seed=5, output="tokens", **{key: value or prompt_wav for key, value in mode.items()})
        for mode in (MODES["preset"], MODES["instruct"], MODES["zero-shot"])
    ]
    assert len({tuple(each.audio()) for each in tokens}) == 3


def test_a_conversion_streams_in_hops(client: Client, prompt_wav: bytes) -> None:
    source = make_wav(0.3 * np.sin(np.arange(24000 * 4) ** 1.2 / 20), 24000)
    with client.convert(source, prompt=prompt_wav, seed=3) as conversion:
        chunks = [np.asarray(chunk) for chunk in conversion]
    assert len(chunks) >= 2
    assert sum(map(len, chunks)) == 4 * 25 * SAMPLES_PER_TOKEN
    again = client.convert(source, prompt=prompt_wav, seed=3).audio()
    np.testing.assert_array_equal(np.concatenate(chunks), again)


def test_speed_changes_the_length_and_nothing_else(client: Client) -> None:
    normal, fast = (client.synthesize(TEXT, seed=8, speed=speed).audio() for speed in (1.0, 2.0))
    assert abs(len(fast) - len(normal) / 2) <= 480


def test_requests_at_once_give_what_each_gives_alone(client: Client) -> None:
    alone = [client.synthesize(TEXT, seed=seed).audio() for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda seed: client.synthesize(TEXT, seed=seed).audio(), range(8)))
    for one, other in zip(alone, crowd, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-3)


def test_the_published_directory_is_served_as_it_is(tmp_path: Path) -> None:
    """Its random weights soon draw a stop token: some of these seeds say something, and all of them end."""
    with Stack(tmp_path, model=TINY) as stack, Client(stack.endpoint, timeout=60) as client:
        lengths = [len(client.synthesize("Hello there.", seed=seed).audio()) for seed in range(6)]
        assert any(lengths)
        assert client.voices() == ("tiny-voice",)


def test_long_silence_is_made_but_not_spoken(tmp_path: Path) -> None:
    with Stack(tmp_path, model=hushed(tmp_path / "model")) as stack, Client(stack.endpoint, timeout=60) as client:
        made = client.synthesize("Hello there.", seed=5, output="tokens").audio().tolist()
        with client.synthesize("Hello there.", seed=5) as synthesis:
            audio = synthesis.audio()
    assert synthesis.tokens == len(made) > len(whole(made)) > 0
    assert len(audio) == len(whole(made)) * SAMPLES_PER_TOKEN
