"""Workers as real processes: what signals do, and what is said of a configuration that cannot work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from lighttts.transport import wire
from tests.workers.fakes import PATIENCE, FakeBroker, work

ROOT = Path(__file__).parents[2]
LONG = 200_000

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(broker: FakeBroker) -> Iterator[Start]:
    """Starts a scripted worker in a mode, of this broker and perhaps others."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(mode: str, *others: FakeBroker) -> subprocess.Popen[bytes]:
        addresses = (broker.address, *(other.address for other in others))
        workers, results = (",".join(endpoints) for endpoints in zip(*addresses, strict=True))
        command = [sys.executable, "-m", "tests.workers.scripted_process", workers, results, mode]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def farewell(broker: FakeBroker) -> None:
    broker.send(wire.Farewell(broker.control(wire.Bye).epoch))


def test_sigterm_drains_and_exits_with_zero(broker: FakeBroker, start: Start) -> None:
    process = start("runs")
    broker.joined()
    broker.send(work("a", frames=5000))
    broker.result(wire.Tokens)
    process.send_signal(signal.SIGTERM)
    broker.control(wire.Drain)
    assert broker.stream("a")[-1].seq == 4999
    farewell(broker)
    assert process.wait(PATIENCE) == 0


def test_a_process_serves_all_brokers_of_its_list_and_sigterm_drains_at_each(broker: FakeBroker, start: Start) -> None:
    other = FakeBroker()
    process = start("runs", other)
    for each in (broker, other):
        each.joined()
        each.send(work("a", frames=2000))
        each.result(wire.Tokens)
    process.send_signal(signal.SIGTERM)
    for each in (broker, other):
        each.control(wire.Drain)
        assert each.stream("a")[-1].seq == 1999
        farewell(each)
    assert process.wait(PATIENCE) == 0


def test_a_second_sigterm_stops_at_once(broker: FakeBroker, start: Start) -> None:
    process = start("runs")
    broker.joined()
    broker.send(work("a", LONG))
    broker.result(wire.Tokens)
    process.send_signal(signal.SIGTERM)
    broker.control(wire.Drain)
    process.send_signal(signal.SIGTERM)
    farewell(broker)
    assert process.wait(PATIENCE) == 0


def test_sigint_stops_at_once(broker: FakeBroker, start: Start) -> None:
    process = start("runs")
    broker.joined()
    broker.send(work("a", LONG))
    broker.result(wire.Tokens)
    process.send_signal(signal.SIGINT)
    farewell(broker)
    assert process.wait(PATIENCE) == 0


def test_a_process_whose_engine_hangs_ends_all_the_same_and_says_that_it_is_not_well(
    broker: FakeBroker, start: Start
) -> None:
    process = start("hangs")
    broker.joined()
    broker.send(work("a"))
    while not broker.beat().active:
        pass
    process.send_signal(signal.SIGINT)
    farewell(broker)
    assert process.wait(PATIENCE) == 70


def test_metrics_and_health_are_served_while_the_worker_runs(broker: FakeBroker, start: Start) -> None:
    process = start("runs")
    assert process.stderr
    started = json.loads(process.stderr.readline())
    assert started["event"] == "worker started"
    site = f"http://127.0.0.1:{started['metrics_port']}"
    with pytest.raises(HTTPError, match="503"):
        urlopen(f"{site}/healthz", timeout=PATIENCE).close()
    broker.joined()
    for name in ("a", "b"):
        broker.send(work(name, frames=3))
        broker.stream(name)
    broker.regains(2)
    with urlopen(f"{site}/healthz", timeout=PATIENCE) as answer:
        assert answer.read() == b"ready, 0 active\n"
    with urlopen(f"{site}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    assert 'light_tts_frames_total{kind="tokens",service="llm"} 6.0' in lines
    assert 'light_tts_stage_seconds_count{service="llm"} 2.0' in lines
    names = {line.partition("{")[0] for line in lines}
    assert {"light_tts_queue_length", "light_tts_active_requests", "light_tts_memory_usage"} <= names


def test_a_configuration_that_cannot_work_is_one_sentence_and_its_exit_code() -> None:
    golden = f"model.directory={ROOT}/tests/golden/cosyvoice2-tiny"
    cases = [
        ("llm", "model.directory=/nowhere", "/nowhere is not a directory"),
        ("decode", "model.device=cuda:63", "model.device is cuda:63"),
        ("encode", "broker.workers=tcp://nowhere", "'tcp://nowhere' is not an address"),
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"lighttts.workers.{stage}", "--set", golden, "--set", setting],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stage, setting, _ in cases
    ]
    for process, (stage, _, sentence) in zip(processes, cases, strict=True):
        _, stderr = process.communicate(timeout=4 * PATIENCE)
        assert process.returncode == 78
        assert stderr.startswith(f"lighttts-{stage}: {sentence}")
        assert len(stderr.splitlines()) == 1
