"""A worker process with a `ScriptedStage`: python -m tests.workers.scripted_process WORKERS RESULTS MODE.

Each of WORKERS and RESULTS is one address, or several with commas. Modes: "runs", or "hangs" in its first step.
"""

from __future__ import annotations

import sys

from lighttts import logs
from lighttts.config import Config, ConnectConfig, LogConfig
from lighttts.workers import base
from lighttts.workers.service import Service, serve
from tests.workers.fakes import BOOT, ScriptedStage


def main(workers: str, results: str, mode: str) -> int:
    base.COMPUTE_STOP = 0.2
    stage = ScriptedStage(epoch=BOOT.epoch)
    if mode == "hangs":
        stage.gate.clear()
    logs.configure("llm", LogConfig(format="json"))
    config = Config(connect=ConnectConfig.model_validate({"workers": workers, "results": results}))
    return serve(Service(stage, BOOT, config, metrics_port=0))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
