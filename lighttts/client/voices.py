"""Registered voices for callers: what is asked of the broker about them, and what its answers say."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from lighttts.client.events import Answered, Event, Failed
from lighttts.client.request import Recording, encodable, read_audio
from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport.wire import (
    AddVoice,
    GetStatus,
    ListVoices,
    Status,
    VoiceAction,
    VoiceDone,
    VoiceFailed,
    VoiceList,
    VoiceRow,
    Voices,
)
from lighttts.voice_file import MAX_FILE_BYTES, VoiceFile, check_name, check_text, read_voice_file

Question = ListVoices | GetStatus | AddVoice | VoiceAction
Reply = Voices | Status | VoiceDone | VoiceList | VoiceFailed
Asking = Callable[[int], Question]
"""Makes a question of the number that its answer will bear."""
Answer = TypeVar("Answer", Voices, Status, VoiceDone, VoiceList)
Content = bytes | str | PathLike[str] | BinaryIO
"""A file: its bytes, its path, or it opened."""


class RegisteredVoice(NamedTuple):
    """A voice that was added: whose it is (empty where keys are not used), when it was added (Unix time), its
    recording's bytes and their SHA-256, and what is said in it (empty in lists)."""

    name: str
    owner: str
    shared: bool
    created: float
    size: int
    digest: str
    text: str = ""


def adding(name: str, recording: Recording, text: str, *, shared: bool, replace: bool, owner: str) -> Asking:
    """Asks for a voice to be added. Raises `InvalidInput`."""
    check_name(name)
    check_text(text)
    prompt = read_audio(recording, "prompt")
    return _checked(lambda number: AddVoice(number, owner, name, text, shared, replace, prompt))


def acting(action: str, name: str = "", *, to: str = "", owner: str = "") -> Asking:
    """Asks for something to be done with a voice. Raises `InvalidInput`."""
    if action != "list":
        check_name(name)
    if action == "rename":
        check_name(to, "to")
    return _checked(lambda number: VoiceAction(number, owner, action, name, to))


def listing(owner: str) -> Asking:
    """Asks for the names of all voices. Raises `InvalidInput`."""
    return _checked(lambda number: ListVoices(number, owner))


def answer_in(event: Event, answer: type[Answer]) -> Answer:
    """The answer that a question has got. Raises the error it has got instead, `ProtocolError` if it is of another
    type."""
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, Answered) and isinstance(event.message, answer):
        return event.message
    raise ProtocolError("the broker answered a question with something else")


def registered(done: VoiceDone) -> RegisteredVoice:
    """The voice that an answer is about."""
    return RegisteredVoice(*done.voice, done.prompt_text)


def row(voice: VoiceRow) -> RegisteredVoice:
    """A voice of a list."""
    return RegisteredVoice(*voice)


def exported(done: VoiceDone) -> bytes:
    """The content of the file that a voice is exported to."""
    return VoiceFile(done.voice.name, done.prompt_text, done.prompt).packed()


def read_file(file: Content) -> VoiceFile:
    """The voice in an exported file. Raises `InvalidInput`."""
    if isinstance(file, bytes):
        return read_voice_file(file)
    if not isinstance(file, str | PathLike):
        return read_voice_file(file.read(MAX_FILE_BYTES + 1))
    try:
        with Path(file).open("rb") as opened:
            return read_voice_file(opened.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise InvalidInput(f"{fspath(file)} cannot be read: {error.strerror}", field="file") from error


def _checked(asking: Asking) -> Asking:
    encodable(asking(0))
    return asking
