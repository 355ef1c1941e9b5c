"""The figures of one load: percentiles over its requests. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lighttts.bench.load import Load
from lighttts.bench.record import Record

PERCENTILES = (50, 90, 95, 99)
Percentiles = dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Seconds, but `requests_per_second` and `audio_per_second` (seconds of audio), and `gpu_busy` (0..1).

    `underruns`: silences heard; `dry`: requests with any; `longest_gap`: the longest. `continuity`: the share of
    requests without. `stages`: mean seconds from dispatch to last result, by stage.
    """

    load: str
    level: float
    requests: int
    failures: dict[str, int]
    first_audio: Percentiles
    chunk_interval: Percentiles
    real_time_factor: Percentiles
    underruns: int
    dry: int
    longest_gap: float
    continuity: float
    requests_per_second: float
    audio_per_second: float
    gpu_busy: float | None = None
    stages: dict[str, float] | None = None


def summarize(
    load: Load, records: Sequence[Record], gpu_busy: float | None = None, stages: dict[str, float] | None = None
) -> Summary:
    """The figures of `records`, which a load has made. Failed requests count in no time."""
    whole = [record for record in records if not record.error and record.arrivals]
    gaps = [record.gaps() for record in whole]
    failures = Counter(record.error or "empty" for record in records if record.error or not record.arrivals)
    began = min((record.due for record in records), default=0.0)
    seconds = max((record.end for record in whole), default=began) - began or 1.0
    dry = sum(map(bool, gaps))
    return Summary(
        load.name,
        load.level,
        len(records),
        dict(failures),
        percentiles(record.first_audio for record in whole),
        percentiles(interval for record in whole for interval in record.intervals),
        percentiles(record.real_time_factor for record in whole),
        sum(map(len, gaps)),
        dry,
        max((gap for some in gaps for gap in some), default=0.0),
        1.0 - dry / len(whole) if whole else 0.0,
        len(whole) / seconds,
        sum(record.audio for record in whole) / seconds,
        gpu_busy,
        stages,
    )


def percentiles(values: Iterable[float]) -> Percentiles:
    """The percentiles of `values`, by name; empty if there are none."""
    sample = [*values]
    if not sample:
        return {}
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(sample, PERCENTILES), strict=True)}
