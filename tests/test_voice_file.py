"""Voices as files: what is written is read again, and whatever else comes is refused in a sentence."""

from __future__ import annotations

import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.errors import InvalidInput
from lighttts.transport.wire import MAX_AUDIO_FILE
from lighttts.voice_file import MAX_FILE_BYTES, VoiceFile, check_name, read_voice_file

VOICE = VoiceFile("anna", "What I say.", b"RIFF")
HEAD = 17 + 32


def sealed(body: bytes) -> bytes:
    """A file whose checksum is right."""
    return b"lighttts-voice 1\n" + hashlib.sha256(body).digest() + body


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/."), min_size=1)


@given(names.filter(lambda name: len(name.encode()) <= 128), st.text(max_size=100), st.binary(min_size=1))
def test_what_is_written_is_read(name: str, text: str, recording: bytes) -> None:
    voice = VoiceFile(name, text, recording)
    assert read_voice_file(voice.packed()) == voice


def test_the_largest_recording_fits() -> None:
    voice = VoiceFile("n" * 128, "t" * 4096, bytes(MAX_AUDIO_FILE))
    assert len(voice.packed()) <= MAX_FILE_BYTES
    assert read_voice_file(voice.packed()) == voice


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_voice_file(content)


@given(st.integers(0, len(VOICE.packed()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_noticed(at: int, change: int) -> None:
    content = bytearray(VOICE.packed())
    content[at] ^= change
    with pytest.raises(InvalidInput):
        read_voice_file(bytes(content))


@given(st.integers(0, len(VOICE.packed()) - 1))
def test_a_cut_file_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput):
        read_voice_file(VOICE.packed()[:length])


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything | st.lists(anything, min_size=3, max_size=3))
def test_a_right_checksum_makes_no_voice_of_anything_else(content: object) -> None:
    try:
        voice = read_voice_file(sealed(msgpack.packb(content)))
    except InvalidInput:
        return
    assert content == [*voice]


@given(st.binary(max_size=200))
def test_nor_of_bytes_that_are_not_packed(body: bytes) -> None:
    try:
        voice = read_voice_file(sealed(body))
    except InvalidInput:
        return
    assert msgpack.unpackb(body) == [*voice]


@pytest.mark.parametrize(
    "fields",
    [
        ["", "text", b"x"],
        ["../etc", "text", b"x"],
        ["a\nb", "text", b"x"],
        ["n" * 129, "text", b"x"],
        ["anna", "t" * 4097, b"x"],
        ["anna", "text", b""],
        ["anna", "text", "x"],
        ["anna", b"text", b"x"],
        ["anna", "text", b"x", b"y"],
    ],
)
def test_what_no_voice_has_is_refused(fields: list[object]) -> None:
    with pytest.raises(InvalidInput):
        read_voice_file(sealed(msgpack.packb(fields)))


@pytest.mark.parametrize("name", ["anna", "Anna Müller", "声音", "a.b-c_d", "x" * 128])
def test_names_are_free(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", " a", "a ", "a\x00", "a\u2028b", "\ud800", "é" * 65])
def test_but_not_quite(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)
