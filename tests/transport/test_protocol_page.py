"""docs/protocol.md and its vectors say what the wire package does, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from lighttts.errors import ProtocolError
from lighttts.transport.wire import REGISTRY, VERSION, decode

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONTENT = json.loads((DOCS / "protocol_vectors.json").read_text())


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protocol_tables", DOCS / "protocol_tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


protocol_tables = load()


def name(vector: dict[str, str]) -> str:
    return vector["why"] if "why" in vector else f"{vector['message']} {vector.get('note', '')}".strip()


@pytest.mark.parametrize("vector", CONTENT["messages"], ids=name)
def test_a_message_is_these_bytes_and_these_bytes_are_the_message(vector: dict[str, object]) -> None:
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    assert [bytes(frame).hex() for frame in protocol_tables.encoded(vector)] == vector["frames"]
    received = decode(frames)
    assert type(received).__name__ == vector["message"]
    said = {field: protocol_tables.field_to_json(getattr(received, field)) for field, _ in received.FIELDS}
    assert json.loads(json.dumps(said)) == vector["fields"]


@pytest.mark.parametrize("vector", CONTENT["refused"], ids=name)
def test_these_bytes_are_refused(vector: dict[str, list[str]]) -> None:
    with pytest.raises(ProtocolError):
        decode([bytes.fromhex(frame) for frame in vector["frames"]])


def test_every_message_has_a_vector() -> None:
    assert {vector["message"] for vector in CONTENT["messages"]} == {cls.__name__ for cls in REGISTRY.values()}


def test_the_tables_of_the_page_are_up_to_date() -> None:
    text = (DOCS / "protocol.md").read_text()
    assert protocol_tables.page(text) == text, "run `python docs/protocol_tables.py`"


def test_the_page_describes_this_version_and_every_message_by_name() -> None:
    text = (DOCS / "protocol.md").read_text()
    assert f"# The LightTTS protocol, version {VERSION}" in text
    assert f"4c 54 {VERSION:02x} tt" in text
    assert {*re.findall(r"^\*\*`(\w+)`\*\* tag", text, re.MULTILINE)} == {cls.__name__ for cls in REGISTRY.values()}


def test_a_stale_table_is_noticed() -> None:
    text = (DOCS / "protocol.md").read_text()
    stale = text.replace("| `request_id` | text 1..64 |", "| `request_id` | text 1..63 |", 1)
    assert stale != text
    assert protocol_tables.page(stale) == text
    with pytest.raises(ValueError, match="limits"):
        protocol_tables.page("")
