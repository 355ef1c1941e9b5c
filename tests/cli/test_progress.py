"""The line that a terminal shows while speech arrives."""

from __future__ import annotations

import io

from lighttts.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(stream: io.StringIO, *, quiet: bool = False) -> tuple[Progress, Clock]:
    clock = Clock()
    return Progress(began=clock.now, quiet=quiet, stream=stream, clock=clock, asked=clock.now + 1), clock


def test_it_tells_tokens_seconds_factor_and_first_audio() -> None:
    terminal = Terminal()
    progress, clock = make(terminal)
    clock.now = 103.0
    progress.arrived(2.0, 50)
    assert "50 tokens, 2.0 s of audio, real-time factor 1.00, first after 3.00 s" in terminal.getvalue()
    clock.now = 104.0
    progress.arrived(4.0, 150)
    assert "150 tokens, 6.0 s of audio, real-time factor 0.50, first after 3.00 s" in terminal.getvalue()


def test_a_chunk_without_audio_is_not_the_first_audio() -> None:
    terminal = Terminal()
    progress, clock = make(terminal)
    progress.arrived(0.0, 0)
    assert progress.line() == "no audio"
    clock.now = 103.0
    progress.arrived(1.0, 25)
    assert progress.line().endswith("first after 3.00 s")


def test_it_is_drawn_at_most_ten_times_a_second() -> None:
    terminal = Terminal()
    progress, clock = make(terminal)
    for _ in range(100):
        clock.now += 0.01
        progress.arrived(0.1, 1)
    assert terminal.getvalue().count("\r") <= 11


def test_only_a_terminal_sees_it_and_not_when_quiet() -> None:
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        progress, _ = make(stream, quiet=quiet)
        progress.say("starting")
        progress.arrived(1.0, 25)
        progress.finish("done")
        progress.clear()
        assert stream.getvalue() == ""


def test_the_last_line_stays() -> None:
    terminal = Terminal()
    progress, _ = make(terminal)
    progress.finish("done")
    assert terminal.getvalue().endswith("done\n")
