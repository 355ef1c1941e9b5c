"""Figures of a running stack: one stream's speed, joins between hops, and many requests at once.

Start a stack (`lighttts-cli up`), then:

    python benchmarks/streams.py one    # real-time factor and first audio, one stream at a time
    python benchmarks/streams.py joins  # steps and spectral flux where hops join, against the rest of the signal
    python benchmarks/streams.py many   # 50 requests at once against their own solo runs; memory before and after
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lighttts.client import Client

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = [s.strip() for s in (ROOT / "benchmarks/dev_sentences.txt").read_text().splitlines() if s.strip()]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One synthesis: chunks (n_i,) float32 in order, seconds to the first chunk and to the end."""

    chunks: list[FloatArray]
    first_audio: float
    duration: float
    sample_rate: int

    @property
    def audio(self) -> FloatArray:
        """The whole signal."""
        return np.concatenate(self.chunks)

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return sum(map(len, self.chunks)) / self.sample_rate


def synthesise(client: Client, text: str, seed: int) -> Run:
    """One request, read as it arrives."""
    began = time.perf_counter()
    with client.synthesize(text, seed=seed) as synthesis:
        chunks, first = [], 0.0
        for chunk in synthesis:
            first = first or time.perf_counter() - began
            chunks.append(np.asarray(chunk))
        return Run(chunks, first, time.perf_counter() - began, synthesis.sample_rate)


def one(client: Client, count: int) -> dict[str, float]:
    """Sequential requests: first audio and real-time factor."""
    synthesise(client, SENTENCES[0], 0)
    runs = [synthesise(client, text, index) for index, text in enumerate(SENTENCES[:count])]
    first = sorted(run.first_audio for run in runs)
    seconds = sum(run.seconds for run in runs)
    return {
        "requests": len(runs),
        "audio_s": seconds,
        "first_audio_p50_s": statistics.median(first),
        "first_audio_max_s": first[-1],
        "rtf": sum(run.duration for run in runs) / seconds,
        "rtf_worst": max(run.duration / run.seconds for run in runs),
    }


def joins(client: Client, count: int) -> dict[str, float]:
    """Largest sample step and spectral flux in the 5 ms around each join, as percentiles of the same in the rest."""
    step_ranks, flux_ranks, steps, rest = [], [], [], []
    texts = sorted(SENTENCES, key=len)[-count:]
    for index, text in enumerate(texts):
        run = synthesise(client, text, index)
        audio, window = run.audio, run.sample_rate // 200
        step = _blocks(np.abs(np.diff(audio, prepend=audio[:1])), window).max(1)
        flux = _flux(audio, window)
        ends = np.cumsum([len(chunk) for chunk in run.chunks])[:-1]
        at = np.unique(np.concatenate([(ends - 1) // window, ends // window]))
        at = at[at < len(flux)]
        elsewhere = np.setdiff1d(np.arange(len(flux)), at)
        step_ranks += [float(np.mean(step[elsewhere] < step[i])) for i in at]
        flux_ranks += [float(np.mean(flux[elsewhere] < flux[i])) for i in at]
        steps.append(float(step[at].max()) if len(at) else 0.0)
        rest.append(float(step[elsewhere].max()))
    return {
        "utterances": len(texts),
        "joins": len(step_ranks) // 2,
        "largest_step_at_joins": max(steps),
        "largest_step_elsewhere": max(rest),
        "utterances_with_larger_step_at_join": sum(s > r for s, r in zip(steps, rest, strict=True)),
        "step_rank_mean": statistics.mean(step_ranks),
        "flux_rank_mean": statistics.mean(flux_ranks),
        "flux_rank_p95": float(np.percentile(flux_ranks, 95)),
    }


def many(client: Client, count: int) -> dict[str, float]:
    """`count` requests at once against the same requests one by one."""
    texts = [SENTENCES[index % len(SENTENCES)] for index in range(count)]
    solo = [synthesise(client, text, index) for index, text in enumerate(texts)]
    before = _stack_memory(client)
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        crowd = list(pool.map(lambda i: synthesise(client, texts[i], i), range(count)))
    duration = time.perf_counter() - began
    differences = [_difference(a.audio, b.audio) for a, b in zip(solo, crowd, strict=True)]
    seconds = sum(run.seconds for run in crowd)
    return {
        "requests": count,
        "identical": sum(d == 0 for d in differences),
        "largest_difference": max(differences),
        "audio_s_per_s": seconds / duration,
        "first_audio_p50_s": statistics.median(run.first_audio for run in crowd),
        "first_audio_max_s": max(run.first_audio for run in crowd),
        "memory_before_mb": before,
        "memory_after_mb": _stack_memory(client),
    }


def _blocks(signal: FloatArray, window: int) -> FloatArray:
    return signal[: len(signal) // window * window].reshape(-1, window)


def _flux(audio: FloatArray, window: int) -> FloatArray:
    spectra = np.abs(np.fft.rfft(_blocks(audio, window) * np.hanning(window).astype(np.float32), axis=1))
    return np.linalg.norm(np.diff(np.log(spectra + 1e-4), axis=0, prepend=np.log(spectra[:1] + 1e-4)), axis=1)


def _difference(a: FloatArray, b: FloatArray) -> float:
    return float(np.abs(a - b).max()) if len(a) == len(b) else float("inf")


def _stack_memory(client: Client) -> float:
    """Resident megabytes of all LightTTS daemons on this machine, once they have had time to give pages back."""
    time.sleep(3)
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ")
            if b"lighttts" in command and b"benchmarks" not in command:
                total += next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmRSS" in line)
        except (OSError, StopIteration):
            continue
    return total / 1024


MODES: dict[str, tuple[Callable[[Client, int], dict[str, float]], int]] = {
    "one": (one, 20),
    "joins": (joins, 20),
    "many": (many, 50),
}


def main() -> int:
    """Runs one mode and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--broker", default="tcp://127.0.0.1:5570")
    parser.add_argument("--count", type=int, help="requests (default 20, many: 50)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measure, count = MODES[options.mode]
    with Client(options.broker, timeout=600) as client:
        figures = measure(client, options.count or count)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:36} {value:.4g}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
