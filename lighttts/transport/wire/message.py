"""The base of all messages: versions, tags, and how a message becomes frames and frames a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import msgpack
import numpy as np

from lighttts.errors import ProtocolError
from lighttts.transport.schema import Buffer, Codec
from lighttts.transport.wire.limits import MAX_ARRAY, MAX_BODY, MAX_PAYLOADS

MAGIC = b"LT"
VERSION = 3
OLDEST = 2
VERSIONS = (OLDEST, VERSION)
HEAD_BYTES = 4


class Since(NamedTuple):
    """Marks a field that came with protocol `version`; in an older message it has the class' default."""

    version: int


class Later(NamedTuple):
    """A field that came with protocol `version`, and what stands for it in an older message."""

    name: str
    version: int
    default: object

    def said_by(self, message: Message) -> bool:
        """Whether the message would mean something else without it."""
        value = getattr(message, self.name)
        if isinstance(value, np.ndarray) and isinstance(self.default, np.ndarray):
            return not np.array_equal(value, self.default)
        return bool(value != self.default)


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """Base of all messages. Two messages are equal when they encode to the same bytes."""

    TAG: ClassVar[int]
    FIRST: ClassVar[int]
    """The version, of those spoken, that the message came with."""
    FIELDS: ClassVar[tuple[tuple[str, Codec], ...]]
    LENGTHS: ClassVar[dict[int, int]]
    """How many of the fields a version has, from `FIRST` on."""
    LATER: ClassVar[tuple[Later, ...]]
    """The fields that came after `FIRST`."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and [*map(bytes, encode(self))] == [*map(bytes, encode(other))]

    def __hash__(self) -> int:
        return hash(tuple(map(bytes, encode(self))))


REGISTRY: dict[int, type[Message]] = {}
"""The message classes by tag."""

M = TypeVar("M", bound=Message)


def tagged(tag: int, first: int = OLDEST) -> Callable[[type[M]], type[M]]:
    """Class decorator: compiles the annotated fields of a message class and enters it in the registry under `tag`.

    `first`: the protocol version it came with.
    """

    def register(cls: type[M]) -> type[M]:
        hints = get_type_hints(cls, include_extras=True)
        cls.TAG, cls.FIRST = tag, first
        cls.FIELDS = tuple((f.name, hints[f.name].__metadata__[0]) for f in fields(cls))
        since = [(f, mark.version) for f in fields(cls) for mark in hints[f.name].__metadata__[1:]]
        cls.LENGTHS = {v: len(cls.FIELDS) - sum(version > v for _, version in since) for v in VERSIONS if v >= first}
        cls.LATER = tuple(Later(f.name, v, _default(f)) for f, v in since if v > first)
        if tag in REGISTRY:
            raise TypeError(f"tag {tag:#x} is taken by {REGISTRY[tag].__name__}")
        REGISTRY[tag] = cls
        return cls

    return register


def _default(of: Field[Any]) -> object:
    return of.default if of.default_factory is MISSING else of.default_factory()


def encode(message: Message, version: int = VERSION) -> list[Buffer]:
    """Frames of a message: head, body, payloads.

    Raises `ProtocolError` when a field is out of its limits, or the message says what `version` has no field for.
    """
    if version < VERSION and version < since(message):
        raise ProtocolError(f"{type(message).__name__} says what version {version} of the protocol has no words for")
    payloads: list[Buffer] = []
    body = []
    for name, codec in message.FIELDS[: message.LENGTHS[version]]:
        try:
            body.append(codec.pack(getattr(message, name), payloads))
        except (ValueError, UnicodeEncodeError) as error:
            raise ProtocolError(f"{type(message).__name__}.{name} {error}", field=name) from None
    packed: bytes = msgpack.packb(body)
    if len(packed) > MAX_BODY:
        raise ProtocolError(f"{type(message).__name__} has a body of {len(packed)} bytes, the limit is {MAX_BODY}")
    return [head(type(message), version), packed, *payloads]


def since(message: Message) -> int:
    """The first version, of those spoken, that can say all that the message says."""
    return max((later.version for later in message.LATER if later.said_by(message)), default=message.FIRST)


def head(cls: type[Message], version: int) -> bytes:
    """The first frame of such a message."""
    return MAGIC + bytes((version, cls.TAG))


def translate(frames: Sequence[Buffer], version: int) -> Sequence[Buffer]:
    """A valid message as one of another version. Raises `ProtocolError` if it says what that version cannot."""
    cls = message_type(frames[0])
    if cls.LENGTHS.get(version) == cls.LENGTHS[frames[0][2]]:
        return [head(cls, version), *frames[1:]]
    return encode(decode(frames), version)


def version_of(frames: Sequence[Buffer]) -> int:
    """The version of the message in `frames`, known or not; 0 if it has no head of ours."""
    first = frames[0] if frames else b""
    return first[2] if len(first) == HEAD_BYTES and bytes(first[:2]) == MAGIC else 0


def message_type(first: Buffer) -> type[Message]:
    """The class a head frame announces. Raises `ProtocolError` on a wrong size, magic, version or tag."""
    if len(first) != HEAD_BYTES or bytes(first[:2]) != MAGIC:
        raise ProtocolError("not a LightTTS message: connect to a LightTTS endpoint with a LightTTS client")
    if first[2] not in VERSIONS:
        raise ProtocolError(
            f"protocol version {first[2]} is not supported, this side speaks {OLDEST} and {VERSION}: upgrade the older"
        )
    cls = REGISTRY.get(first[3])
    if cls is None or first[2] < cls.FIRST:
        raise ProtocolError(f"unknown message tag {first[3]:#04x}: the other side is newer or corrupt")
    return cls


def decode(frames: Sequence[Buffer]) -> Message:
    """The message in `frames` (without routing id). Arrays are read-only views of the payload frames.

    Raises `ProtocolError` on anything that is not exactly one valid message.
    """
    if len(frames) < 2 or len(frames) > 2 + MAX_PAYLOADS:
        raise ProtocolError(f"a message has 2 to {2 + MAX_PAYLOADS} frames, not {len(frames)}")
    cls = message_type(frames[0])
    values = unpack_body(cls, frames[1], frames[0][2])
    payloads = iter(frames[2:])
    fields_ = []
    for (name, codec), raw in zip(cls.FIELDS, values, strict=False):
        try:
            fields_.append(codec.unpack(raw, payloads))
        except ValueError as error:
            raise ProtocolError(f"{cls.__name__}.{name} {error}", field=name) from None
    if next(payloads, None) is not None:
        raise ProtocolError(f"{cls.__name__} has more payload frames than fields that need one")
    return cls(*fields_)


def unpack_body(cls: type[Message], body: Buffer, version: int = VERSION) -> list[object]:
    """The raw field values of a `cls` body, one a field but none of them checked: for a relay that looks at a few.

    Raises `ProtocolError` when the body is too large, not msgpack, or has another number of fields.
    """
    if len(body) > MAX_BODY:
        raise ProtocolError(f"{cls.__name__} has a body of {len(body)} bytes, the limit is {MAX_BODY}")
    try:
        values = msgpack.unpackb(body, max_array_len=MAX_ARRAY, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{cls.__name__} has a body that is not valid msgpack: {error}") from None
    if type(values) is not list or len(values) != cls.LENGTHS[version]:
        raise ProtocolError(f"{cls.__name__} must have {cls.LENGTHS[version]} fields")
    return values
