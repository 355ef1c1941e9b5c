"""Loads the GPU's decode engine alone: requests at random times, their tokens as a language model makes them.

    python -m benchmarks.decode_load FOLDER [--rate 40,80,120]

FOLDER is a model directory (benchmarks/make_model.py). Each request is 125 tokens with a prompt of 75, whose pages are
shared, fed in frames of 5, a token each `--token-ms`. First audio counts from the time at which the first hop's tokens
are there. Tells too how many requests a second end, whether any would run dry, and how the host spends its time: in the
engine's steps, of that waiting for the GPU, and how many chunks a tick has. `--profile` adds the kernels that take most
of the GPU's time at the last rate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lighttts.engine.decode_outgoing import Moment
from lighttts.engine.decode_paged import PagedDecodeEngine
from lighttts.engine.decode_stream import DecodeStep, VoicePrompt
from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.vocoder import Vocoder
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift

TOKENS, PROMPT, FIRST_HOP, FRAME = 125, 75, 28, 5
RATE = 24_000
clock = time.monotonic


@dataclass
class Played:
    """A request: when its first token came, tokens fed, when it was first heard, samples, and if it ran dry."""

    came: float
    fed: int = 0
    heard: float = 0.0
    samples: int = 0
    dry: bool = False

    def play(self, step: DecodeStep, now: float) -> None:
        self.heard = self.heard or now
        self.dry |= now > self.heard + self.samples / RATE and self.samples > 0
        self.samples += len(step.audio)


class Watched:
    """What the host does: seconds of waiting, and ticks with their chunks."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.chunks: list[int] = []

    def watch(self) -> None:
        wait, tick = Moment.wait, FlowBatch.tick

        def timed(moment: Moment) -> None:
            began = clock()
            wait(moment)
            self.waited += clock() - began

        def counted(batch: FlowBatch, tasks: list[FlowTask]) -> list[FlowTask]:
            self.chunks.append(sum(task.chunks for task in tasks))
            return tick(batch, tasks)

        Moment.wait, FlowBatch.tick = timed, counted  # type: ignore[method-assign,assignment]


def feed(engine: PagedDecodeEngine, requests: dict[int, Played], token_s: float) -> None:
    now = clock()
    for key, request in requests.items():
        due = min(TOKENS, int((now - request.came) / token_s) // FRAME * FRAME)
        if due > request.fed:
            engine.feed(key, np.full(due - request.fed, 7, np.int32), due == TOKENS)
            request.fed = due


def load(engine: PagedDecodeEngine, voice: VoicePrompt, rate: float, seconds: float, token_s: float) -> str:
    """One line of figures for requests at `rate` a second."""
    arrivals = clock() + np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    waiting, requests, ended = list(enumerate(arrivals)), dict[int, Played](), list[Played]()
    watched, stepping, began = WATCHED, 0.0, clock()
    watched.waited, watched.chunks = 0.0, []
    while waiting or requests:
        while waiting and waiting[0][1] <= clock():
            key, came = waiting.pop(0)
            engine.open(key, voice, seed=key)
            requests[key] = Played(came)
        feed(engine, requests, token_s)
        if not engine.busy:
            time.sleep(0.0002)
            continue
        start = clock()
        for step in engine.step():
            assert isinstance(step.key, int)
            requests[step.key].play(step, clock())
            if step.finished:
                ended.append(requests.pop(step.key))
        stepping += clock() - start
    whole = clock() - began
    due = -(-FIRST_HOP // FRAME) * FRAME * token_s
    first = np.percentile([1e3 * (request.heard - request.came - due) for request in ended], [50, 90, 99])
    dry = sum(request.dry for request in ended)
    return (
        f"{rate:6.0f}{len(ended) / whole:10.1f}{first[0]:10.0f}{first[1]:6.0f}{first[2]:6.0f}{dry:6}"
        f"{stepping / whole:10.0%}{watched.waited / whole:9.0%}{np.mean(watched.chunks):9.1f}"
    )


WATCHED = Watched()


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads the GPU's decode engine alone.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", default="40,80,120", help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--slots", type=int, default=64, help="chunks at once")
    parser.add_argument("--pages", type=int, default=350)
    parser.add_argument("--token-ms", type=float, default=3.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    directory = ModelDirectory.open(options.folder)
    flow = load_flow(directory, options.device, getattr(torch, options.dtype))
    hift = load_hift(directory, options.device)
    engine = PagedDecodeEngine(
        flow,
        hift,
        max_streams=4096,
        slots=options.slots,
        pages=options.pages,
        vocode=Vocoder(hift, max_batch=16).vocode,
    )
    engine.prepare(2 * (PROMPT + TOKENS))
    numbers = np.random.default_rng(0)
    embedding, mel = numbers.standard_normal(flow.config.speaker_size), numbers.standard_normal((2 * PROMPT, 80))
    voice = VoicePrompt("v", embedding.astype(np.float32), np.full(PROMPT, 7, np.int32), mel.astype(np.float32))
    WATCHED.watch()
    print("  rate  requests/s  first audio p50/p90/p99 ms  dry  stepping  waiting  chunks a tick")
    for rate in options.rate.split(","):
        print(load(engine, voice, float(rate), options.seconds, options.token_ms / 1e3), flush=True)
    if options.profile:
        profile(lambda: load(engine, voice, float(rate), 2.0, options.token_ms / 1e3))


def profile(run: Callable[[], str]) -> None:
    """Of each kernel, how many there are a second and the share of the time in which it runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        began = clock()
        run()
        seconds = clock() - began
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
    print(f"all kernels {sum(row.self_device_time_total for row in rows) / 1e6 / seconds:.0%} of the time")
    for row in rows[:24]:
        print(f"{row.self_device_time_total / 1e6 / seconds:7.1%}{row.count / seconds:9.0f}/s  {row.key[:80]}")


if __name__ == "__main__":
    main()
