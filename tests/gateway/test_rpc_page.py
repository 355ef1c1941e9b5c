"""docs/grpc.md: its programs run, and what it says of names holds."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_readme import blocks
from tests.gateway.process import Gateway
from tests.system.stack import ROOT, Stack

PAGE = (ROOT / "docs/grpc.md").read_text()
PROGRAMS = blocks(PAGE, "python")


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    with Gateway(stack.endpoint, "gateway.grpc_port=0") as running:
        yield running


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_makes_a_file_to_hear(gateway: Gateway, tmp_path: Path, program: str) -> None:
    address, target = re.findall(r'"(127\.0\.0\.1:\d+|hello\.wav)"', program)
    here = program.replace(address, gateway.rpc).replace(target, str(tmp_path / target))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", here], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    with wave.open(str(tmp_path / target)) as file:
        assert file.getframerate() == 24000
        assert file.readframes(1 << 20)


def test_the_generator_it_names_takes_both_files(tmp_path: Path) -> None:
    (command,) = (line for block in blocks(PAGE, "sh") for line in block.splitlines() if "grpc_tools.protoc" in line)
    words = [word.replace("=.", f"={tmp_path}") for word in command.split()]
    subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True, capture_output=True)
    assert {"lighttts_pb2.py", "lighttts_pb2_grpc.py"} <= {path.name for path in tmp_path.iterdir()}
