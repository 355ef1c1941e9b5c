"""Keeps docs/protocol.md and docs/protocol_vectors.json true to lighttts/transport/wire.

Run it after a change of a message: ``python docs/protocol_tables.py``. The tables of the page are made from the
registry. Of the vectors, the `fields` are written by hand (a new message needs an entry); their `frames` are computed
here, and a test checks that the wire package makes and reads the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from lighttts.errors import BY_CODE
from lighttts.transport import wire
from lighttts.transport.schema import Array, Blob, Bool, Buffer, Codec, Float, Int, Many, OneOf, Record, Text
from lighttts.transport.wire import REGISTRY, Message

PAGE = Path(__file__).with_name("protocol.md")
VECTORS = Path(__file__).with_name("protocol_vectors.json")

GROUPS = {
    0x10: "Client to broker",
    0x20: "Broker to client",
    0x30: "Stage results: worker to broker (PUSH), relayed to clients and decode workers unchanged",
    0x40: "Worker to broker",
    0x50: "Broker to worker",
}
LIMITS = {
    "MAX_BODY": "bytes of a body",
    "MAX_FRAME_BYTES": "bytes of one frame (ZeroMQ's MAXMSGSIZE)",
    "MAX_PAYLOADS": "payload frames of a message",
    "MAX_ARRAY": "entries of a msgpack array",
    "MAX_TEXT": "bytes of a text (a broker allows fewer characters: `Welcome.max_text`)",
    "MAX_PIECE": "bytes of a `Piece`",
    "TEXT_WINDOW": "bytes of text in pieces that are not spoken yet",
    "MAX_AUDIO_FILE": "bytes of an audio file: a prompt's or a source's",
}
_DTYPES = {"i4": np.int32, "i2": np.int16, "f2": np.float16, "f4": np.float32}


def describe(codec: Codec) -> str:
    """A field's type as the page writes it."""
    match codec:
        case Text(high=high, low=low):
            return f"text {low}..{high}"
        case OneOf(values=values):
            return "one of " + ", ".join(f"`{value}`" if value else "nothing" for value in values)
        case Int(low=low, high=high):
            return f"int {low}..{_power(high)}"
        case Float(low=low, high=high):
            return f"float {low:g}..{high:g}"
        case Bool():
            return "bool"
        case Many(item=item, high=high):
            return f"up to {high} {describe(item)}"
        case Record(fields=fields, make=make):
            names = make._fields  # type: ignore[attr-defined]
            return "row (" + ", ".join(f"{n}: {describe(f)}" for n, f in zip(names, fields, strict=True)) + ")"
        case Array(dtypes=dtypes, high=high, columns=columns):
            return f"array {' or '.join(dtypes)}, up to {high} rows{f' of {columns}' if columns else ''}"
        case Blob(high=high):
            return f"blob up to {high}"
    raise TypeError(f"describe {codec} here")


def tables() -> dict[str, str]:
    """The generated parts of the page, by name."""
    limits = [f"| {getattr(wire, name):,} | {meaning} |".replace(",", " ") for name, meaning in LIMITS.items()]
    errors = [
        f"| `{code}` | {_one_line(cls.__doc__)} | {'yes' if cls.default_retryable else 'no'} |"
        for code, cls in BY_CODE.items()
    ]
    return {
        "limits": "\n".join(["| at most | |", "|---:|---|", *limits]),
        "errors": "\n".join(["| code | meaning | usually retryable |", "|---|---|---|", *errors]),
        "messages": "\n\n".join(_messages()),
    }


def page(text: str) -> str:
    """`text` with its generated parts made anew."""
    for name, content in tables().items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"protocol.md must have one part 'generated: {name}'")
    return text


def field_to_json(value: object) -> object:
    """A field's value as the vectors write it."""
    if isinstance(value, np.ndarray):
        return {"dtype": next(n for n, d in _DTYPES.items() if d == value.dtype), "rows": value.tolist()}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple):
        return [field_to_json(item) for item in value]
    return value


def field_from_json(codec: Codec, value: object) -> object:
    """The value that `field_to_json` wrote."""
    if isinstance(value, dict) and "hex" in value:
        return bytes.fromhex(value["hex"])
    if isinstance(value, dict):
        array = np.array(value["rows"], _DTYPES[value["dtype"]])
        return array.reshape(-1, codec.columns) if isinstance(codec, Array) and codec.columns else array
    if isinstance(codec, Record) and isinstance(value, list):
        return codec.make(*value)
    if isinstance(codec, Many) and isinstance(value, list):
        return tuple(field_from_json(codec.item, item) for item in value)
    return value


def message_of(vector: dict[str, object]) -> Message:
    """The message that a vector's `message` and `fields` describe."""
    cls = next(cls for cls in REGISTRY.values() if cls.__name__ == vector["message"])
    fields = vector["fields"]
    assert isinstance(fields, dict)
    assert [*fields] == [name for name, _ in cls.FIELDS], f"{cls.__name__} has other fields"
    return cls(**{name: field_from_json(codec, fields[name]) for name, codec in cls.FIELDS})


def encoded(vector: dict[str, object]) -> list[Buffer]:
    """The frames of a vector's message, in its `version` if it names one."""
    version = vector.get("version", wire.VERSION)
    assert isinstance(version, int)
    return wire.encode(message_of(vector), version)


def vectors(content: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
    """`content` with the frames of its messages computed."""
    valid = [{**vector, "frames": [bytes(frame).hex() for frame in encoded(vector)]} for vector in content["messages"]]
    return {"messages": valid, "refused": content["refused"]}


def main() -> None:
    """Rewrites both files."""
    PAGE.write_text(page(PAGE.read_text()))
    content = vectors(json.loads(VECTORS.read_text()))
    rows = {key: ",\n".join("  " + json.dumps(row) for row in value) for key, value in content.items()}
    VECTORS.write_text("{" + ",".join(f'\n"{key}": [\n{value}\n]' for key, value in rows.items()) + "\n}\n")


def _messages() -> list[str]:
    parts = []
    for first, title in GROUPS.items():
        parts.append(f"### {title}")
        parts += [_message(tag, REGISTRY[tag]) for tag in sorted(REGISTRY) if first <= tag < first + 0x10]
    return parts


def _message(tag: int, cls: type[Message]) -> str:
    doc = " ".join((cls.__doc__ or "").split())
    rows = [f"| `{name}` | {describe(codec)}{_since(cls, index)} |" for index, (name, codec) in enumerate(cls.FIELDS)]
    head = f"**`{cls.__name__}`** tag `{tag:02x}`{_from(cls.FIRST, wire.OLDEST)}. {doc}"
    return "\n".join([head, "", "| field | type |", "|---|---|", *rows])


def _since(cls: type[Message], index: int) -> str:
    return _from(min(version for version, length in cls.LENGTHS.items() if index < length), cls.FIRST)


def _from(version: int, before: int) -> str:
    return f", since version {version}" if version > before else ""


def _one_line(doc: str | None) -> str:
    return " ".join((doc or "").split())


def _power(value: int) -> str:
    for bits in (16, 32, 63):
        if value == 2**bits - 1:
            return f"2^{bits}-1"
        if value == 2**bits:
            return f"2^{bits}"
    return str(value)


if __name__ == "__main__":
    main()
