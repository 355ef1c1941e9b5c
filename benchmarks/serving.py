"""Starts all daemons on this machine, loads them with `lighttts-cli bench`, and ends them.

    python -m benchmarks.serving MODEL --rate 10,40,70 --placement mps --json load.json --plot load.svg
    python -m benchmarks.serving pretrained_models/lighttts-nano --device cpu --dtype float32 --concurrency 1,4,16

MODEL is a model directory; with one of `benchmarks.make_model`, requests are 5 s of audio each, for a text of 40 tokens
and a voice with a prompt of 3 s. `--placement`: llm and decode workers as two processes, as two under NVIDIA's MPS, or
as one. Prints seconds to ready and GPU memory, the table of the load, and what the daemons warned of.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.make_model import max_length
from lighttts.client import Client
from lighttts.errors import LightTTSError

TEXT = "The rainbow is a division of white light into many colors in the wide sky."
TEXT_TOKENS, SPEECH_TOKENS = 40, 125
READY_S = 180.0
METRICS = 9570


class Daemons:
    """Processes of one broker and its workers, whose endpoints and logs lie in `folder`."""

    def __init__(self, folder: Path, settings: Sequence[str], environment: dict[str, str]) -> None:
        self.folder = folder
        self.endpoint = f"ipc://{folder}/clients"
        self._settings = [
            f"broker.clients={self.endpoint}",
            f"broker.workers=ipc://{folder}/workers",
            f"broker.results=ipc://{folder}/results",
            f"broker.metrics_port={METRICS}",
            "log.format=json",
            *(f"{stage}.metrics_port=null" for stage in ("encode", "llm", "decode")),
            *settings,
        ]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, name: str) -> None:
        settings = [part for setting in self._settings for part in ("--set", setting)]
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", module, *settings]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=self._environment))

    def wait(self, workers: int) -> None:
        """Returns when so many workers are ready. Raises `RuntimeError` with the logs if they do not come to be."""
        give_up = time.monotonic() + READY_S
        while time.monotonic() < give_up and all(process.poll() is None for process in self._processes):
            try:
                with Client(self.endpoint, connect_timeout=1.0) as client:
                    if sum(row.state == "ready" for row in client.status().workers) >= workers:
                        return
            except LightTTSError:
                pass
            time.sleep(0.2)
        logs = (f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))
        raise RuntimeError("the workers did not come up:\n" + "\n".join(logs))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(60)

    def warnings(self) -> list[str]:
        lines = (line for path in sorted(self.folder.glob("*.log")) for line in path.read_text().splitlines())
        return [line for line in lines if '"level": "info"' not in line]


@contextmanager
def mps(folder: Path, wanted: bool) -> Iterator[dict[str, str]]:
    """NVIDIA's Multi-Process Service while it lasts; what its clients need in their environment."""
    if not wanted:
        yield {}
        return
    paths = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    environment = {**os.environ, **paths}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=True)
    try:
        yield paths
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", env=environment, check=True)


def gpu_memory() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def load(daemons: Daemons, arguments: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "lighttts.cli.main", "bench", "--broker", daemons.endpoint]
    command += ["--metrics", f"http://127.0.0.1:{METRICS}/metrics", "--text", arguments.text]
    for name in ("rate", "concurrency", "seconds", "warmup", "json", "plot", "voice", "processes", "words"):
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    subprocess.run(command, check=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    settings = [
        f"model.directory={arguments.model}",
        f"model.device={arguments.device}",
        f"model.dtype={arguments.dtype}",
        *arguments.set,
    ]
    one = arguments.placement == "one"
    with mps(folder, arguments.placement == "mps") as environment:
        daemons = Daemons(folder, settings, environment)
        began = time.monotonic()
        try:
            daemons.start("lighttts.broker.main", "broker")
            for number in range(arguments.encoders):
                daemons.start("lighttts.workers.encode", f"encode{number}")
            for role in ("gpu",) if one else ("llm", "decode"):
                daemons.start(f"lighttts.workers.{role}", role)
            daemons.wait(arguments.encoders + 2)
            print(f"{arguments.placement}: ready after {time.monotonic() - began:.1f} s, GPU memory {gpu_memory()}")
            load(daemons, arguments)
            print(f"GPU memory afterwards: {gpu_memory()}")
        finally:
            daemons.stop()
            print("\n".join(line[:2000] for line in daemons.warnings()[-8:]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads a whole stack of daemons, which it starts and ends.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--placement", choices=["separate", "mps", "one"], default="separate")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--encoders", type=int, default=4, help="encode workers (default: 4)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--text", default=TEXT)
    for name in ("rate", "concurrency", "seconds", "warmup", "json", "plot", "voice", "processes", "words"):
        parser.add_argument(f"--{name}")
    arguments = parser.parse_args()
    if arguments.voice == "zero-shot":
        arguments.set.insert(0, f"llm.max_length={max_length(TEXT_TOKENS, SPEECH_TOKENS)}")
    with tempfile.TemporaryDirectory(prefix="lighttts-") as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
