"""gRPC: our own service, with a real client of it."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import av
import grpc
import numpy as np
import pytest

from lighttts.transport.wire import Convert, Synth
from tests.client.fake_broker import RATE, FakeBroker, begin_only
from tests.gateway.process import Gateway
from tests.gateway.stubs import TINY, Manner, Speech, dialled, messages, told
from tests.system.stack import Stack

TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."
Conversion = messages.ConvertRequest
Turn = messages.TalkRequest
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    with Gateway(stack.endpoint, "gateway.grpc_port=0") as running:
        yield running


@pytest.fixture(scope="module")
def stub(gateway: Gateway) -> Iterator[Any]:
    with dialled(gateway) as made:
        yield made


@pytest.fixture
def fake() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        yield broker


@pytest.fixture
def before_fake(fake: FakeBroker) -> Iterator[Any]:
    with Gateway(fake.endpoint, "gateway.grpc_port=0") as running, dialled(running) as made:
        yield made


def samples(audio: bytes) -> np.ndarray:
    """What there is to hear, which must be something."""
    heard = np.frombuffer(audio, "<i2")
    assert np.abs(heard.astype(int)).max() > 0
    return heard


def joined(answers: Any) -> np.ndarray:
    """The samples of a stream."""
    pieces = list(answers)
    assert {piece.sample_rate for piece in pieces} == {RATE}
    assert all(piece.content for piece in pieces)
    return samples(b"".join(piece.content for piece in pieces))


def test_a_text_comes_back_as_audio_at_once_and_in_pieces(stub: Any) -> None:
    whole = stub.Synthesize(Speech(text=TEXT, manner=TINY))
    assert whole.sample_rate == RATE
    assert len(samples(whole.content)) % 960 == 0
    assert len(joined(stub.SynthesizeStream(Speech(text=TEXT, manner=TINY)))) % 960 == 0


def test_the_first_piece_is_sent_while_the_rest_is_not_made_yet() -> None:
    with (
        FakeBroker(script={Synth: begin_only}) as broker,
        Gateway(broker.endpoint, "gateway.grpc_port=0") as gateway,
        dialled(gateway) as stub,
    ):
        call = stub.SynthesizeStream(Speech(text="Hello."))
        assert next(call).content
        call.cancel()


@pytest.mark.parametrize(
    ("name", "container"), [("WAV", "wav"), ("FLAC", "flac"), ("MP3", "mp3"), ("OPUS", "ogg"), ("AAC", "aac")]
)
def test_audio_is_one_file_of_its_format(stub: Any, name: str, container: str) -> None:
    manner = Manner(voice="tiny-voice", format=f"FORMAT_{name}")
    audio = b"".join(piece.content for piece in stub.SynthesizeStream(Speech(text=TEXT, manner=manner)))
    with av.open(io.BytesIO(audio)) as file:
        assert file.format.name == container
        assert sum(frame.samples for frame in file.decode(audio=0)) > 0


@pytest.mark.parametrize("more", [{"prompt_text": "hello world"}, {}, {"instruct": "Speak softly."}])
def test_a_prompt_s_voice_speaks(stub: Any, prompt_wav: bytes, more: dict[str, str]) -> None:
    joined(stub.SynthesizeStream(Speech(text=TEXT, manner=Manner(prompt=prompt_wav, **more))))


@pytest.mark.parametrize("voice", ["tiny-voice", ""])
def test_a_recording_is_said_again_in_another_voice(stub: Any, prompt_wav: bytes, voice: str) -> None:
    manner = Manner(voice=voice, prompt=b"" if voice else prompt_wav)
    joined(stub.Convert(Conversion(source=prompt_wav, manner=manner)))


def test_voices_are_listed(stub: Any) -> None:
    assert [voice.name for voice in stub.ListVoices(messages.ListVoicesRequest()).voices] == ["tiny-voice"]


def test_what_is_asked_for_reaches_the_broker(before_fake: Any, fake: FakeBroker) -> None:
    manner = Manner(prompt=b"whose voice", instruct="softly", speed=1.5)
    before_fake.Synthesize(Speech(text="Hello.", manner=manner), timeout=60)
    asked = fake.wait_for(Synth)
    assert (asked.text, asked.prompt, asked.instruct, asked.speed) == ("Hello.", b"whose voice", "softly", 1.5)
    assert 50_000 < asked.deadline_ms < 61_000
    list(before_fake.Convert(Conversion(source=b"what is said", manner=Manner(voice="june", speed=0.5))))
    converted = fake.wait_for(Convert)
    assert (converted.source, converted.voice, converted.speed) == (b"what is said", "june", 0.5)
    assert converted.deadline_ms == 0


@pytest.mark.parametrize(
    ("method", "request_", "status", "code", "field"),
    [
        ("Synthesize", Speech(manner=TINY), INVALID, "invalid_input", "text"),
        ("Synthesize", Speech(text=" \n"), INVALID, "invalid_input", "text"),
        ("SynthesizeStream", Speech(text="word " * 5000, manner=TINY), INVALID, "invalid_input", "text"),
        ("Synthesize", Speech(text="x" * (2 << 20), manner=TINY), INVALID, "invalid_input", "text"),
        ("Synthesize", Speech(text="x", manner=Manner(voice="nobody")), INVALID, "unknown_voice", "voice"),
        ("Synthesize", Speech(text="x", manner=Manner(voice="x" * 129)), INVALID, "invalid_input", "voice"),
        ("Synthesize", Speech(text="x", manner=Manner(voice="a", prompt=b"b")), INVALID, "invalid_input", "voice"),
        ("Synthesize", Speech(text="x", manner=Manner(prompt=b"no audio")), INVALID, "invalid_input", "prompt"),
        ("Synthesize", Speech(text="x", manner=Manner(prompt_text="b")), INVALID, "invalid_input", "prompt_text"),
        ("Synthesize", Speech(text="x", manner=Manner(speed=9)), INVALID, "invalid_input", "speed"),
        ("Synthesize", Speech(text="x", manner=Manner(speed=float("nan"))), INVALID, "invalid_input", "speed"),
        ("Synthesize", Speech(text="x", manner=Manner(format=99)), INVALID, "invalid_input", "format"),
        ("Synthesize", Speech(text="x", manner=Manner(style="angry")), INVALID, "invalid_input", "style"),
        ("Convert", Conversion(), INVALID, "invalid_input", "source"),
        ("Convert", Conversion(source=b"no audio"), INVALID, "invalid_input", "source"),
        ("Convert", Conversion(source=b"x", manner=Manner(instruct="y")), INVALID, "invalid_input", "instruct"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_the_name_of_its_field(
    stub: Any, method: str, request_: Any, status: grpc.StatusCode, code: str, field: str
) -> None:
    ask = getattr(stub, method)
    with pytest.raises(grpc.RpcError) as refused:
        ask(request_) if method == "Synthesize" else list(ask(request_))
    error = refused.value
    assert error.code() is status
    assert error.details()
    more = told(error)
    assert (more["error-code"], more["error-field"]) == (code, field)
    assert "retry-after" not in more


def sentences(*pieces: str) -> Iterator[Any]:
    """A beginning and texts."""
    yield Turn(begin=TINY)
    for piece in pieces:
        yield Turn(text=piece)


def test_text_is_spoken_while_it_is_still_being_written(stub: Any) -> None:
    heard: list[Any] = []
    sounding = threading.Event()

    def written() -> Iterator[Any]:
        yield Turn(begin=TINY)
        yield Turn(text=TEXT)
        yield Turn(text=" And no whole sen")
        yield Turn(flush=messages.Flush())
        assert sounding.wait(60)
        yield Turn(text="tence")

    for piece in stub.Talk(written()):
        heard.append(piece)
        sounding.set()
    assert len(joined(heard)) % 960 == 0


def test_a_flush_speaks_what_is_no_whole_sentence(stub: Any) -> None:
    sounding = threading.Event()

    def written() -> Iterator[Any]:
        yield Turn(begin=TINY)
        yield Turn(text="the quick brown fox jumps over the lazy dog")
        yield Turn(flush=messages.Flush())
        assert sounding.wait(60)
        yield Turn(end=messages.End())

    for piece in stub.Talk(written()):
        assert piece.content
        sounding.set()
    assert sounding.is_set()


def test_the_manner_of_a_conversation_reaches_the_broker(before_fake: Any, fake: FakeBroker) -> None:
    manner = Manner(voice="june", speed=1.5, instruct="Softly.", style="lively")
    turns = [Turn(begin=manner), Turn(text="Hello.")]
    assert list(before_fake.Talk(iter(turns)))
    asked = fake.wait_for(Synth)
    assert (asked.pieces, asked.voice, asked.speed) == ("auto", "june", 1.5)
    assert (asked.instruct, asked.style) == ("Softly.", "lively")


@pytest.mark.parametrize("last", [[], [Turn(end=messages.End())]])
def test_a_conversation_ends_with_its_texts(stub: Any, last: list[Any]) -> None:
    assert len(joined(stub.Talk(itertools.chain(sentences(TEXT, " And so", " on"), last)))) % 960 == 0


def test_a_conversation_without_words_is_silent(before_fake: Any, fake: FakeBroker) -> None:
    assert list(before_fake.Talk(sentences("... \n", " - "))) == []
    assert not fake.all(Synth)


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        ([Turn(text="Hello.")], "begin"),
        ([], "begin"),
        ([Turn(begin=TINY), Turn(begin=TINY)], "begin"),
        ([Turn(begin=TINY), Turn()], ""),
        ([Turn(begin=TINY), Turn(text=TEXT), Turn(end=messages.End()), Turn(text="more")], "text"),
        ([Turn(begin=Manner(voice="nobody")), Turn(text="Hello. ")], "voice"),
    ],
    ids=str,
)
def test_a_conversation_out_of_order_is_refused(stub: Any, turns: list[Any], field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Talk(iter(turns)))
    assert refused.value.code() is INVALID
    assert told(refused.value).get("error-field", "") == field


def test_a_text_that_comes_much_faster_than_it_is_spoken_is_refused(before_fake: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(before_fake.Talk(sentences("x" * 65_537)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("content", "says"), [([], "holds no request"), ([b"\xff" * 9], "lighttts.v1.SynthesizeRequest")]
)
def test_bytes_that_are_no_request_are_refused(gateway: Gateway, content: list[bytes], says: str) -> None:
    with grpc.insecure_channel(gateway.rpc) as channel:
        call = channel.stream_stream("/lighttts.v1.Speech/Synthesize")
        with pytest.raises(grpc.RpcError, match=says) as refused:
            list(call(iter(content)))
    assert refused.value.code() is INVALID


def test_a_method_that_is_not_there_is_unimplemented(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.rpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/lighttts.v1.Speech/Sing")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
