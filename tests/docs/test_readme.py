"""The README: its commands are commands the programs understand, its links lead somewhere, its Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lighttts.cli.main import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "training").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Every simple command of the page's shell blocks, split into words; pipelines are taken apart."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    parts = [part for line in lines for part in re.split(r"\s(?:\||&&)\s", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def test_every_command_line_of_ours_is_understood() -> None:
    ours = [words for page in PAGES for words in commands(page.read_text()) if words[0].endswith("lighttts-cli")]
    assert len(ours) >= 8
    for words in ours:
        assert parse(words[1:]).command


def test_every_make_target_exists() -> None:
    targets = {word for words in commands(README) if "make" in words for word in words[words.index("make") + 1 :]}
    targets = {target for target in targets if "=" not in target}
    assert {"demo", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"
