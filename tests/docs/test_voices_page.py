"""docs/voices.md: what it tells to type and to run works as it stands, but for addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.client import Client
from tests.docs.test_readme import ROOT, blocks
from tests.gateway.process import Gateway
from tests.system.conftest import prompt_wav, stack
from tests.system.stack import Stack

__all__ = ["prompt_wav", "stack"]

PAGE = (ROOT / "docs" / "voices.md").read_text()
TYPED, CURLED = blocks(PAGE, "sh")
CLIENT, CALLS = blocks(PAGE, "python")


@pytest.fixture
def desk(tmp_path: Path, stack: Stack, prompt_wav: bytes) -> Iterator[Path]:
    """A folder with a recording and the programs; there is nothing but preset voices before and after."""
    (tmp_path / "me.wav").write_bytes(prompt_wav)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "lighttts-cli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lighttts.cli.main "$@"\n')
    program.chmod(0o755)
    yield tmp_path
    with Client(stack.endpoint) as client:
        assert client.voices() == ("tiny-voice",)


def typed(block: str, desk: Path, **environment: str) -> str:
    """Runs a block as if it were typed, and ends at the first command that fails."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    how = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run(["bash", "-euc", block], cwd=desk, env=environ, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_lines_work(desk: Path, stack: Stack) -> None:
    out = typed(TYPED, desk, LIGHTTTS_BROKER__CLIENTS=stack.endpoint)
    assert "tiny-voice (default)" in out
    assert "What I say in me.wav." in out
    assert '"shared": true' in out
    assert (desk / "hello.wav").stat().st_size >= 44


def test_the_requests_of_curl_work(desk: Path, stack: Stack) -> None:
    with Gateway(stack.endpoint) as gateway:
        out = typed(CURLED.replace("http://127.0.0.1:8080", gateway.url), desk)
    assert out.count('"id":"me"') >= 3
    assert (desk / "myself.ltv").read_bytes().startswith(b"lighttts-voice 1\n")


def test_the_python_works(desk: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    exec(compile(CLIENT.replace("tcp://127.0.0.1:5570", stack.endpoint), "voices.md", "exec"), names)
    assert "speech" in names


def test_the_calls_of_grpc_work(desk: Path, stack: Stack) -> None:
    with Gateway(stack.endpoint, "gateway.grpc_port=0") as gateway:
        here = CALLS.replace("127.0.0.1:50051", gateway.rpc).replace(
            "lighttts/gateway/rpc", f"{ROOT}/lighttts/gateway/rpc"
        )
        how = {"capture_output": True, "text": True, "timeout": 120, "check": False}
        done = subprocess.run([sys.executable, "-W", "error", "-c", here], cwd=desk, **how)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'prompt_text: "What I say in me.wav."' in done.stdout
    assert (desk / "hello.wav").read_bytes().startswith(b"RIFF")
    assert (desk / "myself.ltv").read_bytes().startswith(b"lighttts-voice 1\n")
