"""What a benchmark makes of the times of its requests."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.bench.load import Load, poisson
from lighttts.bench.observe import stage_means
from lighttts.bench.plot import latency_curve
from lighttts.bench.record import Record
from lighttts.bench.summary import summarize

LOAD = Load(seconds=10.0, warmup=2.0, rate=4.0)


def record(due: float, *arrivals: float, each: float = 1.0, error: str = "") -> Record:
    """A request with `each` seconds of audio in every chunk."""
    return Record(due, [*arrivals], [each] * len(arrivals), arrivals[-1] if arrivals else due, error)


def test_first_audio_counts_from_when_the_request_was_due() -> None:
    assert record(10.0, 10.5, 11.0).first_audio == 0.5


def test_a_listener_who_never_waits_hears_no_gap() -> None:
    assert record(0.0, 5.0, 5.1, 6.9).gaps() == []


def test_a_chunk_that_comes_after_the_audio_before_it_has_ended_is_a_gap_and_playback_goes_on_from_there() -> None:
    assert record(0.0, 1.0, 2.5, 3.4, 5.0).gaps() == pytest.approx([0.5, 0.5])


def test_a_chunk_without_audio_is_not_waited_for() -> None:
    speech = Record(0.0)
    for arrival, seconds in ((0.2, 0.0), (1.0, 0.5), (9.0, 0.0)):
        speech.hear(arrival, seconds)
    assert (speech.first_audio, speech.gaps(), speech.audio) == (1.0, [], 0.5)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_gaps_and_audio_fill_the_time_up_to_the_last_chunk(times: list[float]) -> None:
    speech = record(0.0, *sorted(times))
    heard = sum(speech.gaps()) + speech.audio
    assert heard >= speech.arrivals[-1] - speech.arrivals[0] - 1e-6
    assert sum(speech.gaps()) <= speech.arrivals[-1] - speech.arrivals[0] + 1e-6


def test_a_summary_counts_failures_apart_and_its_rates_over_the_time_of_the_load() -> None:
    whole = [record(float(at), at + 0.5, at + 2.0) for at in range(9)]
    summary = summarize(LOAD, [*whole, record(9.0, error="overloaded")])
    assert (summary.requests, summary.failures) == (10, {"overloaded": 1})
    assert summary.requests_per_second == pytest.approx(9 / 10)
    assert summary.audio_per_second == pytest.approx(18 / 10)
    assert (summary.underruns, summary.dry, summary.continuity) == (9, 9, 0.0)
    assert summary.first_audio == pytest.approx({"p50": 0.5, "p90": 0.5, "p95": 0.5, "p99": 0.5})
    assert summary.real_time_factor["p50"] == pytest.approx(1.0)


def test_a_load_of_which_nothing_was_served_has_no_percentiles() -> None:
    summary = summarize(LOAD, [record(0.0, error="unavailable"), record(1.0)])
    assert summary.failures == {"unavailable": 1, "empty": 1}
    assert (summary.first_audio, summary.requests_per_second) == ({}, 0.0)


def test_an_open_loop_begins_requests_at_random_at_its_rate() -> None:
    load = Load(seconds=1000.0, warmup=0.0, rate=20.0)
    times = poisson(load, random.Random(1))
    assert times == sorted(times)
    assert times[-1] < load.length
    assert len(times) == pytest.approx(20_000, abs=5 * math.sqrt(20_000))


@given(st.integers(1, 8), st.integers(1, 64))
def test_processes_share_a_load_without_rest(processes: int, concurrency: int) -> None:
    parts = [Load(1.0, 0.0, concurrency=concurrency).part(processes, number) for number in range(processes)]
    assert sum(part.concurrency for part in parts) == concurrency
    rates = [Load(1.0, 0.0, rate=7.0).part(processes, number).rate for number in range(processes)]
    assert sum(rates) == pytest.approx(7.0)


def test_stages_are_told_by_the_mean_of_what_was_added() -> None:
    before, after = {"llm": (10.0, 5.0)}, {"llm": (16.0, 8.0), "decode": (3.0, 2.0), "encode": (0.0, 0.0)}
    assert stage_means(before, after) == {"llm": 2.0, "decode": 1.5}


def test_the_plot_is_a_picture_with_a_point_for_each_load_and_percentile() -> None:
    summaries = [summarize(Load(1.0, 0.0, rate=rate), [record(0.0, rate)]) for rate in (1.0, 2.0, 3.0)]
    picture = ET.fromstring(latency_curve(summaries, "requests <a> second"))
    assert len([node for node in picture.iter() if node.tag.endswith("circle")]) == 3 * 4
    assert any(node.text == "requests <a> second" for node in picture.iter())
