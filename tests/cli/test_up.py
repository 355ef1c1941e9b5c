"""`lighttts-cli up`: all or nothing, in the foreground."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lighttts.cli.stack import model_directory, shared_commands
from lighttts.config import Config, load_config
from lighttts.errors import ModelError
from tests.cli.conftest import Run
from tests.cli.processes import Scene, Watch
from tests.client.fake_broker import FakeBroker


def up(scene: Scene, folder: Path, *arguments: str, daemons: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    endpoint = f"broker.clients=ipc://{folder}/clients"
    return scene.cli("up", "--model", str(scene.model), "--set", endpoint, *arguments, daemons=daemons)


def ready(process: subprocess.Popen[str]) -> str:
    """The line that says so."""
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_all_in_order(scene: Scene, tmp_path: Path, number: signal.Signals) -> None:
    process = up(scene, tmp_path)
    assert ready(process) == f"READY ipc://{tmp_path}/clients (1 encode, 1 llm, 1 decode)\n"
    watch = Watch(scene.processes())
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in stderr
    watch.wait_for_all()
    assert scene.left_behind() == []


def test_a_second_ctrl_c_ends_what_does_not_want_to(scene: Scene, tmp_path: Path) -> None:
    process = up(scene, tmp_path, daemons=("llm=tests.cli.daemons.deaf",))
    ready(process)
    watch = Watch(scene.processes())
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert "again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    watch.wait_for_all()


def test_kill_9_of_the_command_ends_all(scene: Scene, tmp_path: Path) -> None:
    process = up(scene, tmp_path)
    ready(process)
    watch = Watch(scene.processes())
    process.kill()
    process.communicate(timeout=60)
    watch.wait_for_all()


def test_a_daemon_that_ends_ends_all_and_is_named(scene: Scene, tmp_path: Path) -> None:
    process = up(scene, tmp_path)
    ready(process)
    watch = Watch(scene.processes())
    worker = min(scene.processes("lighttts.cli.child"))
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "was killed by signal 9" in stderr.splitlines()[-1]
    watch.wait_for_all()


def test_a_daemon_that_cannot_start_gives_its_exit_code(scene: Scene, tmp_path: Path) -> None:
    process = up(scene, tmp_path, daemons=("llm=tests.cli.daemons.broken", "broker=tests.cli.daemons.worker"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 78
    assert "llm.pt is missing" in stderr
    assert stderr.splitlines()[-1] == "lighttts-cli up: lighttts-llm ended with exit code 78"
    assert scene.processes() == {}


def test_an_address_in_use_is_refused_before_anything_starts(run: Run, scene: Scene) -> None:
    with FakeBroker() as broker:
        done = run("up", "--model", str(scene.model), "--set", f"broker.clients={broker.endpoint}")
    assert done.code == 78
    assert f"something listens at {broker.endpoint} already" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--llm", "0"], 65, "1 to 64"),
        (["--llm", "many"], 64, "--llm"),
        (["--broker", "tcp://127.0.0.1:1"], 65, "--set broker.clients"),
        (["--set", "broker.client=x"], 78, "broker.clients"),
        (["--config", "no-such.yaml"], 78, "no-such.yaml"),
        (["--model", "no-such-model"], 78, "no-such-model"),
    ],
)
def test_wrong_options_are_one_sentence(run: Run, arguments: list[str], code: int, words: str) -> None:
    done = run("up", *arguments)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert words in done.err


def test_further_workers_of_a_stage_serve_metrics_on_ports_of_their_own() -> None:
    commands = shared_commands([], load_config(environ={}), {"encode": 1, "llm": 3, "decode": 1}, Path("/m"))
    assert [command["name"] for command in commands] == ["broker", "encode", "llm 1", "llm 2", "llm 3", "decode"]
    ports = [argument for command in commands for argument in command["arguments"] if "metrics_port" in argument]
    assert ports == ["llm.metrics_port=9582", "llm.metrics_port=9592"]


def test_a_model_directory_is_handed_on_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    config = Config.model_validate({"model": {"directory": "mine"}})
    assert model_directory(config, None) == tmp_path / "mine"
    with pytest.raises(ModelError, match="--model"):
        model_directory(config, Path("golden"))


def test_the_llm_workers_serve_the_styles_in_turn(tmp_path: Path) -> None:
    styles = [{"style_name": name, "llm_path": f"{name}.pt"} for name in ("calm", "lively")]
    (tmp_path / "style_config.json").write_text(json.dumps({"lora_info": styles}))
    config = load_config(environ={})
    commands = shared_commands([], config, {"encode": 1, "llm": 4, "decode": 1}, tmp_path)
    served = [argument for command in commands for argument in command["arguments"] if "llm.style" in argument]
    assert served == ['llm.style="calm"', 'llm.style="lively"'] * 2
