"""What a worker does not load when it starts, and does not look through again while it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"
SCRIPT = """
import gc, sys
from lighttts.config import load_config
from lighttts.workers import llm
from lighttts.workers.service import serve
settings = ["model.directory=" + sys.argv[1], "model.device=cpu", "llm.metrics_port=null"]
service = llm.service(load_config(None, overrides=settings))
service.run = lambda: print("torch._dynamo" in sys.modules, "sympy" in sys.modules, gc.get_freeze_count()) or 0
sys.exit(serve(service))
"""


def test_the_llm_starts_without_torch_s_compiler_and_its_model_is_no_garbage_to_look_for() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(GOLDEN)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    compiler, symbols, frozen = printed.splitlines()[-1].split()
    assert (compiler, symbols) == ("False", "False")
    assert int(frozen) > 100_000
