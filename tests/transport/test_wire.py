"""The encoding of messages: what goes in comes out, and nothing that is not a message comes through."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lighttts.errors import ProtocolError
from lighttts.transport import wire
from lighttts.transport.schema import Array, Blob, Many
from lighttts.transport.wire import (
    MAX_ARRAY,
    MAX_BODY,
    MAX_PAYLOADS,
    OLDEST,
    REGISTRY,
    VERSION,
    Audio,
    Cancel,
    Grant,
    ListVoices,
    Mel,
    Message,
    Synth,
    Tokens,
    Voices,
    decode,
    encode,
    head,
    since,
    translate,
    version_of,
)
from tests.transport.strategies import messages

HEAD = b"LT\x03"


def frames_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def audio(samples: np.ndarray) -> Audio:
    return Audio("r", 0, 1, 0, 0, False, 0, 25, samples)


class Untouched:
    """A frame that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("this frame was looked at")


# ---- round trips ----


@given(messages())
@settings(max_examples=300, deadline=None)
def test_any_message_comes_out_as_it_went_in(message: Message) -> None:
    frames = frames_of(message)
    assert frames[0] == head(type(message), VERSION)
    received = decode(frames)
    assert type(received) is type(message)
    for name, _ in message.FIELDS:
        sent, got = getattr(message, name), getattr(received, name)
        if isinstance(sent, np.ndarray):
            assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
        else:
            assert (type(got), got) == (type(sent), sent)
    assert frames_of(received) == frames


@pytest.mark.parametrize("tag", sorted(REGISTRY))
def test_every_class_is_registered_under_its_own_tag_and_can_be_imported_from_the_package(tag: int) -> None:
    cls = REGISTRY[tag]
    assert tag == cls.TAG
    assert [name for name, _ in cls.FIELDS] == [field.name for field in fields(cls)]
    assert getattr(wire, cls.__name__) is cls
    assert cls.__name__ in wire.__all__


def test_an_array_is_received_as_a_view_and_read_only() -> None:
    frames = frames_of(audio(np.arange(4, dtype=np.float32)))
    received = decode(frames)
    assert isinstance(received, Audio)
    assert not received.samples.flags.writeable
    assert received.samples.ctypes.data == np.frombuffer(frames[2], np.uint8).ctypes.data


def test_an_array_that_is_not_contiguous_is_sent_in_order() -> None:
    received = decode(frames_of(audio(np.arange(10, dtype=np.float32)[::2])))
    assert isinstance(received, Audio)
    assert received.samples.tolist() == [0, 2, 4, 6, 8]


def test_messages_are_equal_when_their_bytes_are() -> None:
    one, same, other = (audio(np.array([value], np.float32)) for value in (1, 1, 2))
    assert (one == same, one == other, hash(one) == hash(same)) == (True, False, True)
    assert Cancel("r") != ListVoices(1)


# ---- what is not a message ----


def refused_or_valid(frames: list[bytes]) -> None:
    """The only two things that may become of frames."""
    try:
        message = decode(frames)
    except ProtocolError:
        return
    assert decode(frames_of(message)) == message


@st.composite
def damaged(draw: st.DrawFn) -> list[bytes]:
    """The frames of a message with a few bytes or frames changed, lost or added."""
    frames = frames_of(draw(messages()))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, len(frames) - 1)) if frames else 0
        kind = draw(st.sampled_from(["byte", "cut", "insert", "drop", "double", "swap", "noise"]))
        frame = frames[where] if frames else b""
        at = draw(st.integers(0, max(0, len(frame) - 1)))
        if kind == "drop" and frames:
            del frames[where]
        elif kind == "double":
            frames.insert(where, frame)
        elif kind == "swap":
            frames.reverse()
        elif frames:
            frames[where] = {
                "byte": frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :],
                "cut": frame[:at],
                "insert": frame[:at] + draw(st.binary(max_size=5)) + frame[at:],
                "noise": draw(st.binary(max_size=40)),
            }.get(kind, frame)
    return frames


@given(damaged())
@settings(max_examples=800, deadline=None)
def test_damaged_frames_are_refused_or_another_valid_message(frames: list[bytes]) -> None:
    refused_or_valid(frames)


@given(st.lists(st.binary(max_size=60), max_size=10))
@settings(deadline=None)
@example([])
@example([b"LT\x03\x12"])
def test_arbitrary_frames_are_refused(frames: list[bytes]) -> None:
    refused_or_valid(frames)


_PACKABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=15,
)


@given(
    st.sampled_from(sorted(REGISTRY)), st.lists(_PACKABLE, max_size=12), st.lists(st.binary(max_size=20), max_size=6)
)
@settings(max_examples=300, deadline=None)
def test_any_msgpack_in_the_place_of_a_body_is_refused_or_valid(
    tag: int, body: list[object], payloads: list[bytes]
) -> None:
    refused_or_valid([HEAD + bytes([tag]), msgpack.packb(body), *payloads])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xd4\x01\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\xff",
        b"\x91\xa2\xff\xfe",
        b"\x91\xa1r\x91\xa1r",
        msgpack.packb({"request_id": "r"}),
        msgpack.packb(["r", 1]),
        msgpack.packb([b"r"]),
        msgpack.packb([""]),
        msgpack.packb(["r" * 65]),
        msgpack.packb([["r"]]),
        msgpack.packb([None]),
    ],
)
def test_a_body_that_is_not_the_fields_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="Cancel"):
        decode([HEAD + bytes([Cancel.TAG]), body])


# ---- versions ----


def plain(message: Message) -> Message:
    """The message without what came later than itself."""
    return replace(message, **{later.name: later.default for later in message.LATER})


@given(messages().filter(lambda message: message.FIRST == OLDEST))
@settings(max_examples=300, deadline=None)
def test_a_message_of_the_version_before_means_the_same(message: Message) -> None:
    old = encode(plain(message), OLDEST)
    received = decode(old)
    assert version_of(old) == OLDEST
    assert received == plain(message)
    assert [*map(bytes, encode(received, OLDEST))] == [*map(bytes, old)]


@given(messages())
@settings(max_examples=300, deadline=None)
def test_what_the_version_before_has_no_words_for_is_refused_and_never_left_out(message: Message) -> None:
    if message.FIRST == OLDEST and message == plain(message):
        assert since(message) == OLDEST
        return
    assert since(message) == VERSION
    for say in (lambda: encode(message, OLDEST), lambda: translate(encode(message), OLDEST)):
        with pytest.raises(ProtocolError, match="no words"):
            say()


@pytest.mark.parametrize("cls", [cls for cls in REGISTRY.values() if cls.FIRST > OLDEST])
def test_a_message_of_a_later_version_is_unknown_to_the_one_before(cls: type[Message]) -> None:
    with pytest.raises(ProtocolError, match="unknown message tag"):
        decode([head(cls, OLDEST), Untouched()])  # type: ignore[list-item]


@given(messages())
@settings(max_examples=300, deadline=None)
def test_a_relayed_message_is_translated_to_the_version_of_whoever_gets_it(message: Message) -> None:
    for there in range(since(message), VERSION + 1):
        there_and_here = translate(encode(message), there)
        assert [*map(bytes, there_and_here)] == [*map(bytes, encode(message, there))]
        assert decode(translate(there_and_here, VERSION)) == decode(there_and_here)


@pytest.mark.parametrize("cls", [Tokens, Mel, Audio])
def test_what_is_relayed_by_the_thousand_is_alike_in_both_versions(cls: type[Message]) -> None:
    assert cls.LENGTHS[OLDEST] == cls.LENGTHS[VERSION] == len(cls.FIELDS)


def test_a_field_of_a_later_version_is_refused_in_an_older_message() -> None:
    newest = encode(replace(synth(), instruct="in a whisper"))
    with pytest.raises(ProtocolError, match="must have 11 fields"):
        decode([head(Synth, OLDEST), *newest[1:]])


@pytest.mark.parametrize("frames", [[], [b""], [b"LT\x02"], [b"XX\x02\x10", b""]])
def test_what_is_no_message_has_no_version(frames: list[bytes]) -> None:
    assert version_of(frames) == 0


# ---- order of refusals, and limits before memory ----


@pytest.mark.parametrize(
    "first", [b"", b"LT\x03", b"LT\x03\x12\x00", b"XT\x03\x12", b"LT\x01\x12", b"LT\x04\x12", b"LT\x03\xff"]
)
def test_a_wrong_head_is_refused_before_the_body_is_looked_at(first: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([first, Untouched()])  # type: ignore[list-item]


def test_the_version_is_named_when_it_is_another() -> None:
    with pytest.raises(ProtocolError, match="version 9 is not supported, this side speaks 2"):
        decode([b"LT\x09\x12", b"\x90"])


def test_too_many_frames_are_refused_before_any_is_looked_at() -> None:
    with pytest.raises(ProtocolError, match="frames"):
        decode([Untouched()] * (MAX_PAYLOADS + 3))  # type: ignore[list-item]


def test_a_body_above_the_limit_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(msgpack, "unpackb", unpacked)
    with pytest.raises(ProtocolError, match="limit"):
        decode([HEAD + bytes([Cancel.TAG]), bytes(MAX_BODY + 1)])


def test_a_description_above_the_limit_is_refused_before_the_payload_is_looked_at() -> None:
    limit = next(codec.high for name, codec in Tokens.FIELDS if name == "tokens")
    body = msgpack.packb(["r", 0, 1, 0, 0, False, False, ["i4", limit + 1]])
    with pytest.raises(ProtocolError, match=f"0 to {limit} rows"):
        decode([HEAD + bytes([Tokens.TAG]), body, Untouched()])  # type: ignore[list-item]


def test_arrays_that_claim_more_than_they_hold_cost_no_memory() -> None:
    nested = b"\xdd" + (MAX_BODY - 10_000).to_bytes(4, "big")
    body = (nested * 1000).ljust(MAX_BODY, b"\xc0")
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="max_array_len"):
            decode([HEAD + bytes([Cancel.TAG]), body])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_the_array_limit_admits_every_field_and_the_frame_limit_every_message() -> None:
    for cls in REGISTRY.values():
        assert len(cls.FIELDS) <= MAX_ARRAY
        assert all(codec.high <= MAX_ARRAY for _, codec in cls.FIELDS if isinstance(codec, Many))
        assert sum(isinstance(codec, Array | Blob) for _, codec in cls.FIELDS) <= MAX_PAYLOADS
        for _, codec in cls.FIELDS:
            if isinstance(codec, Array):
                assert codec.high * max(1, codec.columns) * 4 <= wire.MAX_FRAME_BYTES
            elif isinstance(codec, Blob):
                assert codec.high <= wire.MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("description", "payloads"),
    [
        (["f4", 2], [bytes(4)]),
        (["f4", 2], [bytes(12)]),
        (["f4", 2], []),
        (["f4", 2], [bytes(8), b""]),
        (["i4", 2], [bytes(8)]),
        (["f8", 2], [bytes(16)]),
        (["f4", -1], [b""]),
        (["f4", 2.0], [bytes(8)]),
        (["f4", True], [bytes(4)]),
        ([2, "f4"], [bytes(8)]),
        (["f4"], [bytes(8)]),
        ("f4", [bytes(8)]),
    ],
)
def test_a_payload_that_is_not_as_described_is_refused(description: object, payloads: list[bytes]) -> None:
    body = msgpack.packb(["r", 0, 1, 0, 0, False, 0, 25, description])
    with pytest.raises(ProtocolError, match="Audio"):
        decode([HEAD + bytes([Audio.TAG]), body, *payloads])


# ---- sending ----


def synth() -> Synth:
    return Synth("r", "Hello.", "heart", "", 1, 1.0, "audio", "f32", 0, 8, b"")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (replace(synth(), request_id=""), "request_id"),
        (replace(synth(), text="x" * (wire.MAX_TEXT + 1)), "text"),
        (replace(synth(), text="ü" * (wire.MAX_TEXT // 2 + 1)), "text"),
        (replace(synth(), text="\ud800"), "text"),
        (replace(synth(), seed=-1), "seed"),
        (replace(synth(), seed=2**63), "seed"),
        (replace(synth(), speed=float("nan")), "speed"),
        (replace(synth(), speed=float("inf")), "speed"),
        (replace(synth(), output="video"), "output"),
        (replace(synth(), prompt=bytes(wire.MAX_AUDIO_FILE + 1)), "prompt"),
        (Grant(1, 2**32), "credit"),
        (Voices(1, 24000, ("v",) * (wire.MAX_VOICES + 1)), "names"),
        (audio(np.zeros(3, np.float64)), "samples"),
        (audio(np.zeros((3, 1), np.float32)), "samples"),
        (audio(np.zeros(3, ">f4")), "samples"),
        (Mel("r", 0, 1, 0, 0, False, 0, 0, np.zeros((2, 81), np.float32)), "mel"),
    ],
)
def test_a_field_out_of_its_limits_is_not_sent_and_is_named(message: Message, field: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(message)
    assert caught.value.field == field


def test_fields_within_their_limits_that_make_too_large_a_body_are_not_sent() -> None:
    with pytest.raises(ProtocolError, match="body"):
        encode(replace(synth(), text="x" * wire.MAX_TEXT, prompt_text="x" * wire.MAX_TEXT))
