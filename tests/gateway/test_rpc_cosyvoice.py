"""CosyVoice's gRPC clients: what they put on the wire, byte by byte, and how they read what comes back."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from lighttts.gateway.rpc.cosyvoice import PROMPT_RATE
from lighttts.transport.wire import Synth
from tests.client.fake_broker import FakeBroker
from tests.gateway.process import Gateway
from tests.gateway.stubs import told
from tests.system.stack import Stack

TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."
MODES = {"sft": 1, "zero_shot": 2, "cross_lingual": 3, "instruct": 4}
FIELDS = {
    "sft": ("spk_id", "tts_text"),
    "zero_shot": ("tts_text", "prompt_text", "prompt_audio"),
    "cross_lingual": ("tts_text", "prompt_audio"),
    "instruct": ("tts_text", "spk_id", "instruct_text"),
}
"""In the order of their numbers."""


def varint(number: int) -> bytes:
    """As protocol buffers have it."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def request(mode: str, **given: str | bytes) -> bytes:
    """What a client sends."""
    values = [(number, given[name]) for number, name in enumerate(FIELDS[mode], 1) if name in given]
    form = b"".join(field(number, value.encode() if isinstance(value, str) else value) for number, value in values)
    return field(MODES[mode], form)


def audio(response: bytes) -> bytes:
    """The one field of an answer."""
    assert response[0] == 1 << 3 | 2
    length = at = 0
    while response[at + 1] & 0x80:
        at += 1
    for byte in reversed(response[1 : at + 2]):
        length = length << 7 | byte & 0x7F
    assert len(response) == at + 2 + length
    return response[at + 2 :]


@pytest.fixture(scope="module")
def samples(prompt_wav: bytes) -> bytes:
    """What clients make of a prompt: int16 samples without a header."""
    with wave.open(io.BytesIO(prompt_wav)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (PROMPT_RATE, 2, 1)
        return file.readframes(file.getnframes())


@pytest.fixture(scope="module")
def inference(stack: Stack) -> Iterator[Any]:
    with Gateway(stack.endpoint, "gateway.grpc_port=0") as running, grpc.insecure_channel(running.rpc) as channel:
        yield channel.unary_stream("/cosyvoice.CosyVoice/Inference")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_speaks(inference: Any, samples: bytes, mode: str) -> None:
    given = {
        "tts_text": TEXT,
        "spk_id": "tiny-voice",
        "prompt_text": "hello world",
        "prompt_audio": samples,
        "instruct_text": "Speak softly.",
    }
    heard = b"".join(audio(response) for response in inference(request(mode, **given)))
    assert np.abs(np.frombuffer(heard, np.int16).astype(int)).max() > 0


def test_what_is_asked_for_reaches_the_broker(samples: bytes) -> None:
    with (
        FakeBroker() as broker,
        Gateway(broker.endpoint, "gateway.grpc_port=0") as gateway,
        grpc.insecure_channel(gateway.rpc) as channel,
    ):
        ask = channel.unary_stream("/cosyvoice.CosyVoice/Inference")
        list(ask(request("instruct", tts_text="Hello.", spk_id="june", instruct_text="softly")))
        asked = broker.wait_for(Synth)
        assert (asked.text, asked.voice, asked.instruct, asked.prompt) == ("Hello.", "june", "softly", b"")
        list(ask(request("zero_shot", tts_text="你好。", prompt_text="what I say", prompt_audio=samples)))
        asked = broker.wait_for(Synth, 2)
        assert (asked.text, asked.voice, asked.prompt_text) == ("你好。", "", "what I say")
        with wave.open(io.BytesIO(asked.prompt)) as file:
            assert file.getframerate() == PROMPT_RATE
            assert file.readframes(file.getnframes()) == samples


@pytest.mark.parametrize(
    ("content", "field_name"),
    [
        (b"", ""),
        (field(5, b""), ""),
        (request("sft", tts_text="", spk_id="tiny-voice"), "tts_text"),
        (request("sft", tts_text="Hello.", spk_id="nobody"), "spk_id"),
        (request("cross_lingual", tts_text="Hello."), "prompt_audio"),
        (request("cross_lingual", tts_text="Hello.", prompt_audio=b"odd"), "prompt_audio"),
        (request("cross_lingual", tts_text="Hello.", prompt_audio=b"\1\0" * 40 * PROMPT_RATE), "prompt_audio"),
        (request("instruct", tts_text="Hello.", instruct_text="<|endofprompt|>"), "instruct_text"),
    ],
    ids=["nothing", "unknown mode", "no text", "no voice", "no prompt", "half a sample", "40 s", "no instruction"],
)
def test_what_is_wrong_is_refused_by_the_name_that_these_clients_know(
    inference: Any, content: bytes, field_name: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(inference(content))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert told(refused.value).get("error-field", "") == field_name
