"""What a broker's machine tells while a load runs: how busy its GPUs are, and how long each stage takes."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import urllib.request
from types import TracebackType

from lighttts.errors import ConfigError

INTERVAL_MS = 200
METRICS_BYTES = 1 << 22
_STAGE = re.compile(r'^light_tts_stage_seconds_(sum|count)\{service="(\w+)"\} (\S+)$', re.MULTILINE)
Totals = dict[str, tuple[float, float]]


class GpuWatch:
    """The busy share of this machine's GPUs while it is entered, by nvidia-smi; `busy` is None without one."""

    def __init__(self) -> None:
        self.busy: float | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuWatch:
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            self._process = subprocess.Popen([*query, f"-lms={INTERVAL_MS}"], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            lines, _ = self._process.communicate()
            shares = [int(line) / 100 for line in lines.split() if line.isdecimal()]
            self.busy = statistics.fmean(shares) if shares else None


def stage_totals(url: str) -> Totals:
    """Seconds and requests of each stage so far, from the broker's metrics at `url`. Raises `ConfigError`."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            text = page.read(METRICS_BYTES).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the broker's metrics cannot be read at {url}: {error}") from error
    values = {(stage, kind): float(value) for kind, stage, value in _STAGE.findall(text)}
    return {stage: (values[stage, "sum"], values[stage, "count"]) for stage, kind in values if kind == "sum"}


def stage_means(before: Totals, after: Totals) -> dict[str, float]:
    """Mean seconds of each stage between two looks."""
    means = {}
    for stage, (seconds, count) in after.items():
        earlier_seconds, earlier_count = before.get(stage, (0.0, 0.0))
        if count > earlier_count:
            means[stage] = (seconds - earlier_seconds) / (count - earlier_count)
    return means
