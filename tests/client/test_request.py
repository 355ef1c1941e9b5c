"""What a caller may ask for, and the sentence when it is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lighttts.client.request import Recording, make_convert, make_synth, read_audio
from lighttts.config import BrokerConfig
from lighttts.errors import InvalidInput
from lighttts.transport.endpoints import DEFAULT_BROKER
from lighttts.transport.wire import MAX_AUDIO_FILE, MAX_TEXT, Convert, Synth


def make(text: str = "Hello.", **changes: object) -> Synth:
    options: dict[str, object] = {
        "voice": None,
        "prompt": None,
        "prompt_text": "",
        "instruct": "",
        "style": "",
        "seed": 1,
        "speed": 1.0,
        "output": "audio",
        "format": "f32",
        "deadline": None,
    }
    return make_synth(text, **{**options, **changes})


def convert(source: Recording = b"RIFF", **changes: object) -> Convert:
    options = {"voice": None, "prompt": None, "seed": 1, "speed": 1.0, "output": "audio", "format": "f32"}
    return make_convert(source, **{**options, "deadline": None, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n\t "}, "text"),
        ({"text": "caf\udce9"}, "text"),
        ({"text": "x" * (MAX_TEXT + 1)}, "text"),
        ({"voice": "heart", "prompt": b"RIFF"}, "voice"),
        ({"voice": "v" * 129}, "voice"),
        ({"prompt_text": "said"}, "prompt_text"),
        ({"prompt": b"RIFF", "prompt_text": "\udcff"}, "prompt_text"),
        ({"prompt": b"RIFF", "prompt_text": "said", "instruct": "low"}, "instruct"),
        ({"instruct": "\udcff"}, "instruct"),
        ({"instruct": "x" * 4097}, "instruct"),
        ({"prompt": b""}, "prompt"),
        ({"prompt": bytes(MAX_AUDIO_FILE + 1)}, "prompt"),
        ({"prompt": "no/such/file.wav"}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"speed": 0.49}, "speed"),
        ({"speed": 2.01}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"output": "video"}, "output"),
        ({"format": "u8"}, "sample_type"),
        ({"deadline": 0.0}, "deadline"),
        ({"deadline": float("inf")}, "deadline"),
        ({"deadline": 1e9}, "deadline_ms"),
    ],
)
def test_what_is_wrong_is_refused_at_once_naming_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**changes)
    assert caught.value.field == field
    assert "Synth" not in caught.value.text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"source": b""}, "source"),
        ({"source": bytes(MAX_AUDIO_FILE + 1)}, "source"),
        ({"source": "no/such/file.wav"}, "source"),
        ({"voice": "heart", "prompt": b"RIFF"}, "voice"),
        ({"prompt": b""}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"speed": 0.49}, "speed"),
        ({"output": "tokens"}, "output"),
        ({"format": "u8"}, "sample_type"),
        ({"deadline": 0.0}, "deadline"),
    ],
)
def test_what_is_wrong_with_a_conversion_is_refused_at_once_naming_the_field(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        convert(**changes)
    assert caught.value.field == field
    assert "Convert" not in caught.value.text


def test_a_conversion_has_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "s.wav"
    path.write_bytes(b"RIFF1234")
    message = convert(source=path, prompt=b"RIFF", seed=7, speed=1.5, output="mel", deadline=2.5)
    assert (message.source, message.prompt, message.voice) == (b"RIFF1234", b"RIFF", "")
    assert (message.seed, message.speed, message.output, message.deadline_ms) == (7, 1.5, "mel", 2500)


def test_a_prompt_is_read_from_path_bytes_or_file(tmp_path: Path) -> None:
    path = tmp_path / "p.wav"
    path.write_bytes(b"RIFF1234")
    for given in (path, str(path), b"RIFF1234", io.BytesIO(b"RIFF1234")):
        assert read_audio(given, "prompt") == b"RIFF1234"


def test_an_endless_prompt_file_is_read_no_further_than_the_limit() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(InvalidInput, match="16 MiB"):
        read_audio(endless, "prompt")


def test_two_requests_have_different_ids() -> None:
    assert make().request_id != make().request_id


def test_the_default_broker_is_the_one_the_configuration_starts() -> None:
    assert BrokerConfig().clients == DEFAULT_BROKER
