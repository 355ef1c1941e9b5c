"""`lighttts-cli convert` with a running broker: files in and out, and what goes wrong."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from lighttts.transport.wire import Convert
from tests.cli.conftest import Run
from tests.client.fake_broker import RATE, FakeBroker, chunk_of, refuse


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "me.wav"
    path.write_bytes(b"RIFF....")
    return path


def test_a_recording_becomes_a_file_in_another_voice(
    run: Run, broker: FakeBroker, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heart.wav"
    done = run("convert", str(source), "--voice", "heart", "-o", str(out), "--broker", broker.endpoint)
    assert done == (0, b"", "")
    request = broker.wait_for(Convert)
    assert (request.source, request.voice) == (b"RIFF....", "heart")
    with wave.open(str(out)) as sound:
        assert sound.getframerate() == RATE
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    np.testing.assert_array_equal(samples, np.concatenate([chunk_of(request, n) for n in range(broker.chunks)]))


def test_options_reach_the_request(run: Run, broker: FakeBroker, source: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "you.wav"
    prompt.write_bytes(b"RIFF, you")
    more = ("--prompt-wav", str(prompt), "--seed", "9", "--speed", "1.5", "--output", "mel")
    assert run("convert", str(source), "-o", str(tmp_path / "x.npy"), *more, "--broker", broker.endpoint).code == 0
    request = broker.wait_for(Convert)
    assert (request.prompt, request.seed, request.speed, request.output) == (b"RIFF, you", 9, 1.5, "mel")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no/such.wav",), "source no/such.wav cannot be read"),
        (("/dev/null",), "the source is empty"),
        (("{source}", "--voice", "heart", "--prompt-wav", "{source}"), "a voice or a prompt, not both"),
        (("{source}", "--speed", "2.01"), "speed must be 0.5 to 2.0"),
        (("{source}", "--retries", "-1"), "--retries must be 0 or more"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_asked_for(
    run: Run, broker: FakeBroker, source: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    given = [argument.format(source=source) for argument in arguments]
    done = run("convert", *given, "-o", str(tmp_path / "x.wav"), "--broker", broker.endpoint)
    assert done.code == 65
    assert says in done.err
    assert broker.all(Convert) == []
    assert os.listdir(tmp_path) == ["me.wav"]


def test_the_brokers_refusal_is_the_commands(run: Run, source: Path, tmp_path: Path) -> None:
    text = "The source audio is silent; send a recording of somebody who speaks."
    with FakeBroker(script={Convert: refuse("invalid_input", text)}) as broker:
        done = run("convert", str(source), "-o", str(tmp_path / "x.wav"), "--broker", broker.endpoint)
    assert done == (65, b"", f"lighttts-cli convert: {text}\n")


def test_tokens_of_a_conversion_are_not_to_be_had(run: Run, source: Path, tmp_path: Path) -> None:
    done = run("convert", str(source), "--output", "tokens", "-o", str(tmp_path / "x.npy"))
    assert done.code == 64
