"""The configuration: sources, precedence, and errors that name what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lighttts.config import Config, known_keys, load_config
from lighttts.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    assert load_config(ROOT / "conf/lighttts.yaml", environ={}) == Config()
    shipped = yaml.safe_load((ROOT / "conf/lighttts.yaml").read_text())
    keys = [*shipped, *(f"{section}.{key}" for section, values in shipped.items() for key in values)]
    assert sorted(keys) == sorted(known_keys())


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("broker: {max_requests: 1, max_text: 1, max_credit: 1}\n")
    environ = {"LIGHTTTS_BROKER__MAX_TEXT": "2", "LIGHTTTS_BROKER__MAX_CREDIT": "2", "LIGHTTTS_OTHER": "ignored"}
    broker = load_config(path, overrides=["broker.max_credit=3"], environ=environ).broker
    assert (broker.max_requests, broker.max_text, broker.max_credit) == (1, 2, 3)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "c.yaml", environ={}) == Config()


def test_a_relative_model_directory_is_also_looked_for_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = load_config(overrides=["model.directory=tests/golden/cosyvoice2-tiny"], environ={}).model.directory
    assert there == ROOT / "tests/golden/cosyvoice2-tiny"
    (tmp_path / "tests/golden/cosyvoice2-tiny").mkdir(parents=True)
    here = load_config(overrides=["model.directory=tests/golden/cosyvoice2-tiny"], environ={}).model.directory
    assert not here.is_absolute()


@pytest.mark.parametrize(("written", "read"), [("0660", "0660"), ("'0660'", "0660"), ("0600", "0600")])
def test_permissions_may_be_written_with_or_without_quotes(tmp_path: Path, written: str, read: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"security: {{ipc_mode: {written}}}\n")
    assert load_config(path, environ={}).security.ipc_mode == read
    assert load_config(overrides=[f"security.ipc_mode={written}"], environ={}).security.ipc_mode == read


@pytest.mark.parametrize("mode", ["0666", "0777", "600", "yes"])
def test_permissions_for_everybody_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"security\.ipc_mode"):
        load_config(overrides=[f"security.ipc_mode={mode}"], environ={})


def test_null_switches_the_metrics_port_off() -> None:
    assert load_config(overrides=["llm.metrics_port=null"], environ={}).llm.metrics_port is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("broker.clinets=tcp://x:1", r"unknown key 'broker.clinets'; did you mean 'broker.clients'"),
        ("brokr.clients=tcp://x:1", r"unknown key 'brokr'; did you mean 'broker'"),
        ("broker.clients=localhost:5570", r"broker.clients is 'localhost:5570'"),
        ("broker.max_text=-1", r"broker.max_text is -1"),
        ("llm.metrics_port=70000", r"llm.metrics_port is 70000"),
        ("llm.slots", r"write it as section.key=value"),
        ("slots=3", r"section.key"),
        ("llm.slots=[1", r"not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_with_its_name(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(overrides=[override], environ={})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"broker: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n", "must hold sections"),
        (b"broker: !!python/object/apply:os.system [true]\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_path(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"broken\.yaml.*{expected}"):
        load_config(path, environ={})


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml", environ={})


@pytest.mark.parametrize("state", ["redis//:hush@host", "http://user:hush@host", "[hush]"])
def test_a_state_store_s_password_is_not_shown(state: str) -> None:
    with pytest.raises(ConfigError, match=r"broker\.state is no address") as caught:
        load_config(overrides=[f"broker.state={state}"], environ={})
    assert "hush" not in caught.value.text
    assert caught.value.__suppress_context__


def test_a_file_that_is_not_valid_says_in_which_line_but_not_what_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "lighttts.yaml"
    path.write_text('broker:\n  state: redis://:hush@host\n  clients: "tcp: [hush\n')
    with pytest.raises(ConfigError, match=r"not valid YAML, line 4: ") as caught:
        load_config(path, environ={})
    assert "hush" not in caught.value.text
    assert caught.value.__suppress_context__
