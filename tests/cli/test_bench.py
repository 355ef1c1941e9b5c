"""`lighttts-cli bench`: loads on a broker, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lighttts.errors import Overloaded
from lighttts.transport.wire import Error, Piece, Synth
from tests.cli.conftest import Run
from tests.client.fake_broker import FakeBroker

QUICK = ("--seconds", "0.5", "--warmup", "0.1")


def test_a_closed_loop_keeps_so_many_requests_going(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    done = run("bench", "--concurrency", "1,3", *QUICK, "--json", str(told), "--broker", broker.endpoint)
    assert done.code == 0
    summaries = json.loads(told.read_text())
    assert [summary["load"] for summary in summaries] == ["1 at once", "3 at once"]
    assert all(summary["requests"] > 0 and not summary["failures"] for summary in summaries)
    assert all(set(summary["first_audio"]) == {"p50", "p90", "p95", "p99"} for summary in summaries)
    assert len(done.out.decode().splitlines()) == 3


def test_an_open_loop_of_several_processes_asks_for_what_it_was_told(
    run: Run, broker: FakeBroker, tmp_path: Path
) -> None:
    plot = tmp_path / "curve.svg"
    arguments = ("--rate", "40", "--processes", "2", *QUICK, "--text", "Say this.", "--voice", "june")
    assert run("bench", *arguments, "--plot", str(plot), "--broker", broker.endpoint).code == 0
    assert {(synth.text, synth.voice) for synth in broker.all(Synth)} == {("Say this.", "june")}
    assert plot.read_text().startswith("<svg")


def test_a_text_that_is_still_being_written_comes_word_by_word(run: Run, broker: FakeBroker) -> None:
    arguments = ("--rate", "20", *QUICK, "--text", "Say  this\nnow.", "--words", "100")
    done = run("bench", *arguments, "--broker", broker.endpoint)
    assert done.code == 0
    asked = broker.all(Synth)
    assert asked
    for synth in asked:
        assert synth.pieces
        words = [piece.text for piece in broker.all(Piece) if piece.request_id == synth.request_id]
        assert [synth.text, *words] == ["", "Say ", "this ", "now. "]


def test_failures_are_counted_by_their_code_and_a_service_that_serves_nobody_is_unavailable(
    run: Run, tmp_path: Path
) -> None:
    def full(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        broker.send(peer, Error(message.request_id, Overloaded.code, "full", "", True, 10))

    told = tmp_path / "figures.json"
    with FakeBroker(script={Synth: full}) as broker:
        arguments = ("--rate", "30", *QUICK, "--voice", "june", "--json", str(told))
        assert run("bench", *arguments, "--broker", broker.endpoint).code == 69
    assert set(json.loads(told.read_text())[0]["failures"]) == {"overloaded"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--rate", "x"], "'x' is no load"),
        (["--concurrency", "0"], "must be above 0"),
        (["--rate", "1", "--seconds", "0"], "--seconds must be above 0"),
        (["--rate", "1", "--words", "-1"], "--words must be 0"),
        (["--rate", "1", "--prompt", "/no/such.wav"], "no such file"),
        (["--rate", "1", "--metrics", "http://127.0.0.1:1/metrics"], "cannot be read"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(run: Run, broker: FakeBroker, arguments: list[str], why: str) -> None:
    done = run("bench", *arguments, "--broker", broker.endpoint)
    assert done.code in (65, 78)
    assert why in done.err


def test_without_a_broker_there_is_nothing_to_measure(run: Run) -> None:
    done = run("bench", "--rate", "1", "--broker", "tcp://127.0.0.1:1")
    assert done.code == 69
    assert "no broker answers" in done.err
