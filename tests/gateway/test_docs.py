"""The commands on the pages of the doors: what is pasted works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_readme import blocks
from tests.gateway.process import Gateway
from tests.system.stack import ROOT

PAGES = ("gateway", "openai", "cosyvoice-http", "websocket", "migration")
ADDRESS = "127.0.0.1:8080"
VOICE = "heart"
CURL = "curl() { command curl --fail --silent --show-error --noproxy '*' \"$@\"; }\n"


def examples() -> list[tuple[str, str, str]]:
    """Page, language and text of every block that asks a gateway."""
    pages = {name: (ROOT / f"docs/{name}.md").read_text() for name in PAGES}
    found = [
        (name, kind, text) for name, page in pages.items() for kind in ("sh", "python") for text in blocks(page, kind)
    ]
    return [
        (name, kind, text) for name, kind, text in found if f"://{ADDRESS}" in text and "lighttts-gateway" not in text
    ]


@pytest.mark.parametrize(("page", "kind", "text"), examples(), ids=lambda value: value if len(value) < 20 else "")
def test_an_example_works(gateway: Gateway, prompt_wav: bytes, tmp_path: Path, page: str, kind: str, text: str) -> None:
    for name in ("me.wav", "them.wav"):
        (tmp_path / name).write_bytes(prompt_wav)
    text = text.replace(ADDRESS, gateway.url.removeprefix("http://")).replace(VOICE, "tiny-voice")
    command = ["bash", "-euc", CURL + text] if kind == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in re.findall(r"hello\.\w+|\w+\.(?:mp3|wav)(?=\n)", text):
        assert (tmp_path / name).stat().st_size > 0, name


def test_every_door_has_examples() -> None:
    kinds = {(page, kind) for page, kind, _ in examples()}
    assert kinds >= {("gateway", "sh"), ("openai", "sh"), ("openai", "python"), ("cosyvoice-http", "sh")}
    assert kinds >= {("cosyvoice-http", "python"), ("websocket", "python")}
