"""The command line with the real broker and workers, on the tiny reference model."""

from __future__ import annotations

import signal
import subprocess
import sys
import wave
from pathlib import Path

from tests.cli.processes import ROOT, Scene, Watch

TINY = ROOT / "tests/golden/cosyvoice2-tiny"


def real(scene: Scene, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lighttts.cli.main", *arguments],
        cwd=scene.work,
        env=scene.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_synth_without_a_broker_speaks_and_leaves_nothing_but_the_file(scene: Scene) -> None:
    process = real(scene, "synth", "Hello there.", "-o", "hello.wav", "--seed", "1", "--model", str(TINY))
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
    with wave.open(str(scene.work / "hello.wav")) as sound:
        assert sound.getframerate() == 24000
        assert sound.getnframes() % 960 == 0
        assert any(sound.readframes(sound.getnframes()))
    assert scene.processes() == {}
    assert scene.left_behind() == [str(scene.work / "hello.wav")]


def test_up_serves_the_other_commands_until_ctrl_c(scene: Scene, tmp_path: Path) -> None:
    sockets = [f"broker.{name}=ipc://{tmp_path}/{name}" for name in ("clients", "workers", "results")]
    ports = [f"{name}.metrics_port=null" for name in ("broker", "encode", "llm", "decode")]
    settings = [argument for setting in (*sockets, *ports) for argument in ("--set", setting)]
    process = real(scene, "up", "--model", str(TINY), *settings)
    try:
        assert process.stdout
        endpoint = f"ipc://{tmp_path}/clients"
        assert process.stdout.readline() == f"READY {endpoint} (1 encode, 1 llm, 1 decode)\n"
        watch = Watch(scene.processes())
        voices = real(scene, "voices", "--broker", endpoint)
        assert voices.communicate(timeout=60) == ("VOICE\ntiny-voice (default)\n", "")
        synth = real(scene, "synth", "Hello.", "-o", "tokens.npy", "--output", "tokens", "--broker", endpoint)
        assert synth.communicate(timeout=60) == ("", "")
        unknown = real(scene, "synth", "Hello.", "-o", "x.wav", "--voice", "nobody", "--broker", endpoint)
        assert "nobody" in unknown.communicate(timeout=60)[1]
        assert unknown.returncode == 65
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    watch.wait_for_all()
    # The file that onnxruntime keeps when it reports its use to its maker.
    assert not (scene.temporary / ".ses").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "work"]


def test_a_damaged_model_is_one_sentence_that_names_the_file(scene: Scene) -> None:
    for path in TINY.iterdir():
        if path.name != "llm.pt":
            (scene.model / path.name).symlink_to(path)
    (scene.model / "llm.pt").write_bytes(b"damaged")
    process = real(scene, "synth", "Hello.", "-o", "x.wav", "--model", str(scene.model))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 78
    assert stderr.count("\n") == 1
    assert "llm.pt" in stderr
    assert scene.left_behind() == []
