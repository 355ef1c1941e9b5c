"""The stack that `synth` starts for itself when there is no broker: it leaves nothing behind, however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from lighttts.cli.warden import Warden, _private_folder
from tests.cli.processes import Scene, Watch
from tests.client.fake_broker import FakeBroker

FAKES = ("broker", "encode", "llm", "decode")


def synth(scene: Scene, *daemons: str, **environment: str) -> subprocess.Popen[str]:
    return scene.cli("synth", "Hello.", "-o", "out.wav", "--model", str(scene.model), daemons=daemons, **environment)


def asked(scene: Scene, folder: Path) -> tuple[subprocess.Popen[str], Watch]:
    """A command whose request its broker holds for ever, and all its processes."""
    story = folder / "story"
    os.mkfifo(story)
    process = synth(scene, SCRIPT="hold", STORY=str(story))
    with story.open() as told:
        assert told.readline() == "asked\n"
    pids = scene.processes()
    assert len(pids) == 2 + len(FAKES), pids
    return process, Watch(pids)


def test_it_speaks_and_nothing_is_left(scene: Scene) -> None:
    process = synth(scene)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert scene.processes() == {}
    assert scene.left_behind() == [str(scene.work / "out.wav")]
    assert (scene.work / "out.wav").stat().st_size == 44 + 4 * 960


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_everything_and_leaves_nothing(
    scene: Scene, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process, watch = asked(scene, tmp_path)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "", "")
    watch.wait_for_all()
    assert scene.left_behind() == []


def test_a_signal_before_the_stack_is_ready_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    story = tmp_path / "story"
    os.mkfifo(story)
    process = synth(scene, "encode=tests.cli.daemons.slow", STORY=str(story), MISSING="encode")
    with story.open() as told:
        assert told.readline() == "loading\n"
    watch = Watch(scene.processes())
    process.kill()
    process.communicate(timeout=60)
    watch.wait_for_all()
    assert scene.left_behind() == []


def test_a_daemon_that_does_not_listen_to_sigterm_ends_too(scene: Scene, tmp_path: Path) -> None:
    process = synth(scene, "llm=tests.cli.daemons.deaf")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert scene.processes() == {}


def test_a_killed_warden_takes_its_daemons_with_it(scene: Scene, tmp_path: Path) -> None:
    process, watch = asked(scene, tmp_path)
    (warden,) = scene.processes("lighttts.cli.warden")
    os.kill(warden, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 70
    assert stderr.count("\n") == 1
    assert "watches over the daemons was killed" in stderr
    watch.wait_for_all()
    assert scene.left_behind() == []


def test_a_broker_that_is_killed_mid_stream_is_told_by_its_name(scene: Scene, tmp_path: Path) -> None:
    process, watch = asked(scene, tmp_path)
    (broker,) = scene.processes("tests.cli.daemons.broker ")
    os.kill(broker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert stderr == "lighttts-cli synth: lighttts-broker was killed by signal 9\n"
    assert process.returncode == 70
    watch.wait_for_all()
    assert scene.left_behind() == []


def test_a_daemon_that_cannot_start_is_told_in_its_own_words(scene: Scene) -> None:
    process = synth(scene, "llm=tests.cli.daemons.broken", MISSING="llm")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 78
    assert stderr.count("\n") == 1
    assert "llm.pt is missing; restore it from the published model." in stderr
    assert scene.processes() == {}
    assert scene.left_behind() == []


def test_a_package_that_is_missing_is_told_with_what_installs_it(scene: Scene) -> None:
    process = synth(scene, "decode=tests.cli.daemons.bare", MISSING="decode")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 69
    assert "a_package_that_is_not_installed is missing: pip install 'lighttts[worker]'" in stderr


def test_without_a_model_directory_nothing_is_started(scene: Scene) -> None:
    process = scene.cli("synth", "Hello.", "-o", "out.wav", "--model", "no/such/model")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 78
    assert "no/such/model" in stderr
    assert "--model" in stderr


def test_without_room_for_its_folder_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    reports = io.BytesIO()
    Warden({"private": True, "grace": 0.0, "commands": [{"name": "x", "arguments": ["x"]}]}, reports).start()
    report = json.loads(reports.getvalue())
    assert "No space left" in report["failed"]
    assert "TMPDIR" in report["failed"]


def test_a_temporary_folder_too_deep_for_sockets_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = _private_folder()
    folder.rmdir()
    assert folder.parent == Path("/tmp")


def test_a_broker_that_runs_is_used_instead(scene: Scene, tmp_path: Path) -> None:
    with FakeBroker(f"ipc://{tmp_path}/nobody") as broker:
        process = scene.cli("synth", "Hello.", "-o", "out.wav")
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, "")
        assert len(broker.received) > 0


def test_the_folder_is_the_owners_alone(scene: Scene, tmp_path: Path) -> None:
    process, _ = asked(scene, tmp_path)
    (folder,) = scene.temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "clients").stat().st_mode & 0o777 == 0o600
    process.terminate()
    process.communicate(timeout=60)
