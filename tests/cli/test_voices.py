"""`lighttts-cli voices`: voices of one's own, by a broker that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lighttts.transport.wire import AddVoice
from tests.cli.conftest import Done, Run
from tests.client.fake_broker import FakeBroker

Voices = Callable[..., Done]


@pytest.fixture
def voices(run: Run, broker: FakeBroker) -> Voices:
    """Runs `lighttts-cli voices` at the fake broker."""
    return lambda *words: run("voices", *words, "--broker", broker.endpoint)


@pytest.fixture
def wav(tmp_path: Path) -> str:
    path = tmp_path / "me.wav"
    path.write_bytes(b"RIFF of me")
    return str(path)


def test_a_voice_is_added_listed_shown_renamed_and_removed(voices: Voices, broker: FakeBroker, wav: str) -> None:
    assert voices("add", "me", "--wav", wav, "--text", "What I say.", "--shared").out == b"me added\n"
    (asked,) = broker.all(AddVoice)
    assert (asked.prompt, asked.prompt_text, asked.shared, asked.replace) == (b"RIFF of me", "What I say.", True, False)
    assert voices().out == b"VOICE\nheart (default)\njune\nme (registered, shared)\n"
    shown = voices("show", "me").out.decode()
    assert "everybody" in shown
    assert "What I say." in shown
    assert voices("rename", "me", "myself").out == b"myself renamed\n"
    assert voices("remove", "myself").out == b"myself removed\n"
    assert voices("list").out == b"VOICE\nheart (default)\njune\n"


def test_everything_is_told_to_programs_too(voices: Voices, wav: str) -> None:
    added = json.loads(voices("add", "me", "--wav", wav, "--json").out)
    assert (added["name"], added["size"], added["text"]) == ("me", 10, "")
    assert json.loads(voices("show", "me", "--json").out) == added
    assert json.loads(voices("--json").out)["registered"] == [added]
    assert json.loads(voices("remove", "me", "--json").out) == added


def test_a_voice_travels_as_a_file(voices: Voices, wav: str, tmp_path: Path) -> None:
    voices("add", "me", "--wav", wav, "--text", "What I say.")
    file = str(tmp_path / "me.ltv")
    assert voices("export", "me", "-o", file).code == 0
    assert voices("export", "me", "-o", "-").out == Path(file).read_bytes()
    voices("remove", "me")
    assert voices("import", file).out == b"me added\n"
    assert voices("import", file, "--name", "you").out == b"you added\n"
    assert voices("import", file).code == 65
    assert voices("import", file, "--replace").code == 0
    assert voices("import", wav).code == 65


def test_no_file_is_left_of_an_export_that_fails(voices: Voices, tmp_path: Path) -> None:
    done = voices("export", "nobody", "-o", str(tmp_path / "nobody.ltv"))
    assert (done.code, done.err) == (65, "lighttts-cli voices: there is none\n")
    assert not [*tmp_path.glob("*.ltv")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "me"], "--wav"),
        (["add", "--wav", "x.wav"], "one name"),
        (["show"], "one name"),
        (["rename", "me"], "two names"),
        (["list", "me"], "no further word"),
        (["import"], "one file"),
        (["export", "me"], "-o FILE"),
        (["show", "me", "--shared"], "--shared goes with voices add and import"),
        (["add", "me", "--wav", "no/such.wav"], "cannot be read"),
        (["add", "a/b", "--wav", "x.wav"], "name"),
    ],
)
def test_a_slip_is_told_in_a_sentence(voices: Voices, words: list[str], told: str) -> None:
    done = voices(*words)
    assert (done.code, done.out) == (65, b"")
    assert done.err.count("\n") == 1
    assert told in done.err


def test_an_unknown_action_is_a_wrong_command_line(voices: Voices) -> None:
    assert voices("destroy", "me").code == 64


def test_an_older_broker_lists_what_it_has(run: Run) -> None:
    with FakeBroker(version=2) as broker:
        assert run("voices", "--broker", broker.endpoint).out == b"VOICE\nheart (default)\njune\n"
        done = run("voices", "show", "me", "--broker", broker.endpoint)
        assert done.code == 76
        assert "upgrade" in done.err
