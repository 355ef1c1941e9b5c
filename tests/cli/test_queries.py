"""`lighttts-cli voices`, `status`, and what all commands share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lighttts import __version__
from lighttts.cli.main import build_parser
from lighttts.cli.options import broker_addresses, config_arguments, merge
from lighttts.transport.endpoints import DEFAULT_BROKER
from tests.cli.conftest import Run
from tests.client.fake_broker import FakeBroker


def test_voices_are_listed_for_people_and_programs(run: Run, broker: FakeBroker) -> None:
    assert run("voices", "--broker", broker.endpoint).out == b"VOICE\nheart (default)\njune\n"
    assert json.loads(run("voices", "--json", "--broker", broker.endpoint).out) == {
        "voices": ["heart", "june"],
        "registered": [],
    }


def test_a_broker_without_voices_says_what_else_there_is(run: Run) -> None:
    with FakeBroker(voices=()) as broker:
        assert b"--prompt-wav" in run("voices", "--broker", broker.endpoint).out


def test_status_is_a_table_of_workers(run: Run, broker: FakeBroker) -> None:
    done = run("status", "--broker", broker.endpoint)
    lines = done.out.decode().splitlines()
    assert lines[0] == "broker fake, up 12 s, state in memory"
    assert lines[1] == "requests: 0 active, 0 queued, 3 completed, 1 failed"
    assert lines[2].split() == ["WORKER", "STAGE", "MODEL", "STATE", "ACTIVE", "FREE", "UP", "HEARD"]
    assert lines[3].split() == ["encode-1", "encode", "nano", "ready", "0", "4", "12", "s", "0", "s", "ago"]
    assert len(lines) == 6


def test_status_as_json_has_every_field(run: Run, broker: FakeBroker) -> None:
    status = json.loads(run("status", "--json", "--broker", broker.endpoint).out)
    assert (status["broker"], status["completed"]) == ("fake", 3)
    assert status["workers"][1]["stage"] == "llm"


def test_status_without_workers_says_what_to_start(run: Run) -> None:
    with FakeBroker(stages=()) as broker:
        assert b"start lighttts-encode" in run("status", "--broker", broker.endpoint).out


@pytest.mark.parametrize("command", ["voices", "status"])
def test_no_broker_is_told_at_once(run: Run, command: str) -> None:
    with FakeBroker() as gone:
        pass
    done = run(command, "--broker", gone.endpoint)
    assert (done.code, done.out) == (69, b"")
    said = f"no broker answers at {gone.endpoint}: start one with `lighttts-cli up`"
    assert done.err == f"lighttts-cli {command}: {said}\n"


@pytest.fixture
def gone() -> str:
    """An address where nobody listens."""
    with FakeBroker() as broker:
        pass
    return broker.endpoint


@pytest.mark.parametrize("command", ["voices", "synth"])
def test_any_broker_of_a_list_will_do(run: Run, broker: FakeBroker, gone: str, command: str) -> None:
    more = ["Hello.", "--output", "tokens", "-o", "-", "-q"] if command == "synth" else []
    assert run(command, *more, "--broker", f"{gone},{broker.endpoint}").code == 0


def test_no_broker_of_a_list_is_told_at_once_and_names_all(run: Run, gone: str) -> None:
    done = run("voices", "--broker", f"{gone},ipc:///nowhere")
    assert done.code == 69
    assert f"no broker answers at {gone} or ipc:///nowhere" in done.err


def test_a_wrong_address_in_a_list_is_a_wrong_configuration(run: Run, gone: str) -> None:
    done = run("voices", "--broker", f"{gone},localhost")
    assert done.code == 78
    assert "'localhost' is not an address" in done.err


def test_status_of_several_brokers_has_a_line_for_each_and_the_workers_of_each(run: Run, broker: FakeBroker) -> None:
    with FakeBroker(stages=("llm",)) as other:
        done = run("status", "--broker", f"{broker.endpoint},{other.endpoint}")
    assert done.code == 0
    lines = done.out.decode().splitlines()
    said = "broker fake, up 12 s, state in memory, requests: 0 active, 0 queued, 3 completed, 1 failed"
    assert lines[:2] == [f"{broker.endpoint}: {said}", f"{other.endpoint}: {said}"]
    assert lines[2].split()[:2] == ["BROKER", "WORKER"]
    seen = [tuple(line.split()[:2]) for line in lines[3:]]
    assert seen == [
        *[(broker.endpoint, f"{stage}-1") for stage in ("encode", "llm", "decode")],
        (other.endpoint, "llm-1"),
    ]


def test_status_of_several_brokers_tells_which_does_not_answer(run: Run, broker: FakeBroker, gone: str) -> None:
    done = run("status", "--broker", f"{gone},{broker.endpoint}")
    assert done.code == 69
    lines = done.out.decode().splitlines()
    assert lines[0] == f"{gone}: no broker answers at {gone}: start one with `lighttts-cli up`"
    assert lines[1].startswith(f"{broker.endpoint}: broker fake")
    told = json.loads(run("status", "--json", "--broker", f"{gone},{broker.endpoint}").out)["brokers"]
    assert [row["address"] for row in told] == [gone, broker.endpoint]
    assert (told[0]["error"], told[1]["completed"]) == ("unavailable", 3)


def test_common_options_may_stand_before_or_after_the_command(run: Run, broker: FakeBroker) -> None:
    assert run("--broker", broker.endpoint, "voices").code == 0
    setting = f"broker.clients={broker.endpoint}"
    assert run("--set", setting, "voices").code == 0
    assert run("voices", "--set", setting).code == 0


def test_the_broker_is_named_by_option_configuration_environment_or_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    def addresses(*arguments: str) -> tuple[str, ...]:
        options = build_parser()[0].parse_args(["voices", *arguments])
        merge(options)
        return broker_addresses(options)

    monkeypatch.delenv("LIGHTTTS_BROKER__CLIENTS", raising=False)
    assert addresses() == (DEFAULT_BROKER,)
    monkeypatch.setenv("LIGHTTTS_BROKER__CLIENTS", "tcp://0.0.0.0:7000")
    assert addresses() == ("tcp://127.0.0.1:7000",)
    assert addresses("--set", "broker.clients=tcp://10.0.0.2:7001") == ("tcp://10.0.0.2:7001",)
    assert addresses("--broker", "tcp://10.0.0.3:7002") == ("tcp://10.0.0.3:7002",)
    monkeypatch.setenv("LIGHTTTS_CONNECT__CLIENTS", "tcp://a:1,tcp://b:2")
    assert addresses() == ("tcp://a:1", "tcp://b:2")
    assert addresses("--set", "connect.clients=[tcp://c:3, tcp://d:4]") == ("tcp://c:3", "tcp://d:4")
    assert addresses("--broker", "tcp://e:5, tcp://f:6") == ("tcp://e:5", "tcp://f:6")


def test_all_settings_are_handed_to_daemons() -> None:
    options = build_parser()[0].parse_args(["--set", "a.b=1", "voices", "--set", "c.d=2"])
    merge(options)
    assert config_arguments(options) == ["--set", "a.b=1", "--set", "c.d=2"]


def test_version_and_help_teach(run: Run) -> None:
    assert run("--version").out.decode() == f"lighttts {__version__}\n"
    for command in ("synth", "up", "voices", "status", "doctor"):
        shown = run(command, "--help")
        assert shown.code == 0
        assert f"lighttts-cli {command}" in shown.out.decode().partition("examples:")[2]


def test_an_unknown_command_is_one_sentence(run: Run) -> None:
    done = run("sing")
    assert (done.code, done.err.count("\n")) == (64, 1)
    assert "'sing'" in done.err


PROGRAM = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"yaml", "pydantic", "torch", "redis", "structlog", "soundfile"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Forbid())
from lighttts.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_a_bare_install_talks_to_a_broker(broker: FakeBroker) -> None:
    done = bare("voices", "--broker", broker.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bare_install_says_what_the_configuration_needs() -> None:
    done = bare("voices", "--set", "broker.clients=tcp://127.0.0.1:1")
    assert done.returncode == 69
    assert "pip install 'lighttts[server]'" in done.stderr


def test_the_command_line_imports_nothing_heavy_to_start() -> None:
    program = "import sys, lighttts.cli.main; print(sorted({'numpy', 'zmq', 'pydantic', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
