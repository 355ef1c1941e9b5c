"""The language model on a GPU: its kernels against plain torch, milliseconds of a step and of a prefill, their floors.

    python -m benchmarks.llm_steps MODEL [--dtype bfloat16] [--slots 1,32,64,128,256]

MODEL is a directory such as `benchmarks.make_model` makes. Parts, each of which may fail without the others:

1. seconds and memory of capturing;
2. requests that join and leave at random: of each step, how many tokens plain torch draws too from the same state;
3. milliseconds of a replayed step with all slots at context 250 and 512, and of a step of the whole engine;
4. milliseconds of a replayed prefill of 1, 4 and 16 requests of 128 positions;
5. microseconds of each kernel of a step;
6. milliseconds of a step with other blocks of attention.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighttts.engine import llm_state
from lighttts.engine.capture import Captured
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.engine.llm_batched import BatchedSteps
from lighttts.engine.llm_ops import LLMOps, TorchOps
from lighttts.engine.llm_steps import Drawn, Piece
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import SpeechLM, load_llm
from lighttts.workers.model import dtype_of

TEXT, PROMPT_TEXT, PROMPT = 40, 12, 75
PREFILLED = 1 + PROMPT_TEXT + TEXT + 1 + PROMPT - 1
LENGTH = 576
REPLAYS = 20
BANDWIDTH = 3.35e12
"""Bytes a second of an H100's memory."""
OPERATIONS = 989e12
"""Operations a second of its tensor cores in bfloat16."""
COMPILED = {1: 1.12, 64: 1.27, 128: 1.5, 256: 1.92}
"""Milliseconds of a step of torch.compile in a CUDA graph, context 512, by slots."""


def _attention(block: int, warps: int, stages: int) -> dict[str, dict[str, int]]:
    return {"attend_options": {"BLOCK": block, "num_warps": warps, "num_stages": stages}}


VARIANTS = [
    (f"attention {block} x {warps} warps x {stages}", _attention(block, warps, stages))
    for block, warps, stages in ((128, 4, 3), (64, 4, 3), (64, 4, 4), (128, 8, 3), (32, 2, 4))
]
"""Titles and attributes of the operations; all of them are in the first."""


def job(key: int) -> GenerateJob:
    random = np.random.default_rng(key)
    text = random.integers(0, 100, PROMPT_TEXT + TEXT).astype(np.int32)
    prompt = random.integers(0, 100, PROMPT).astype(np.int32)
    return GenerateJob(key, text, TEXT, prompt, key, np.zeros(0, np.int32))


def batched(engine: LLMEngine) -> BatchedSteps:
    assert isinstance(engine._steps, BatchedSteps)
    return engine._steps


def milliseconds(work: Callable[[], object], times: int = REPLAYS) -> float:
    """Of one call on the device, after one that is not counted."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / times


def parameter_bytes(model: SpeechLM) -> int:
    """What a step reads of the weights: all but the embeddings."""
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embed" not in name)


def place(steps: BatchedSteps, slots: int, position: int) -> None:
    """Has the next replays advance the first `slots` slots from `position` on."""
    steps._state[:slots, llm_state.POSITION] = position
    steps._slots[:slots] = torch.arange(slots, device=steps._slots.device)
    steps._listed = []


class Heard:
    """Operations that keep the logits they draw from."""

    def __init__(self, ops: LLMOps) -> None:
        self._ops = ops
        self.logits = torch.empty(0)

    def __getattr__(self, name: str) -> object:
        return getattr(self._ops, name)

    def draw(self, logits: Tensor, slots: Tensor, state: Tensor, drawn: Tensor) -> None:
        self.logits = logits.float().clone()
        self._ops.draw(logits, slots, state, drawn)


class Compared:
    """Lets plain torch repeat every step of an engine from the same state, and counts equal tokens."""

    def __init__(self, engine: LLMEngine) -> None:
        self.steps = batched(engine)
        self.plain = Heard(TorchOps(engine.model, self.steps._cache))
        self.kernels = Heard(self.steps.ops)
        self.equal = self.drawn = 0
        self.error = 0.0
        self._decode = self.steps.decode
        self.steps.decode = self.decode  # type: ignore[method-assign]

    def decode(self, rows: Sequence[tuple[int, int]]) -> Drawn:
        before = self.steps._state.clone()
        drawn = self._decode(rows)
        after, count = self.steps._state.clone(), len(rows)
        own = self.steps._drawn[:count].clone()
        captured, usual = next(n for n in self.steps._decode_rows if n >= count), self.steps.ops
        for ops in (self.kernels, self.plain):
            self.steps._state.copy_(before)
            self.steps.ops = ops  # type: ignore[assignment]
            self.steps.run_decode(captured)
        self.steps.ops = usual
        self.equal += int((self.steps._drawn[:count] == own).sum())
        self.drawn += count
        ours, theirs = self.kernels.logits[:count], self.plain.logits[:count]
        self.error = max(self.error, float((ours - theirs).abs().max() / theirs[:, :6561].std()))
        self.steps._state.copy_(after)
        return drawn


def compare(model: SpeechLM, slots: int, calls: int) -> None:
    engine = LLMEngine(model, slots=slots, max_length=256)
    counted = Compared(engine)
    random, key = np.random.default_rng(1), 0
    for _ in range(calls):
        for _ in range(random.poisson(slots / 12)):
            engine.add(job(key))
            key += 1
        for _ in range(random.poisson(slots / 40)):
            engine.cancel(int(random.integers(key + 1)))
        engine.step()
    print(
        f"{model.dtype}, {calls} steps of up to {slots} requests: {counted.equal} of {counted.drawn} tokens as plain "
        f"torch draws; largest error of a logit {counted.error:.1e} standard deviations"
    )


def time_steps(engine: LLMEngine, slots: Sequence[int]) -> None:
    steps, weights = batched(engine), parameter_bytes(engine.model)
    config = engine.model.config
    position_bytes = 2 * config.layers * config.kv_heads * config.head_width * engine.model.dtype.itemsize
    print("milliseconds; compiled: torch.compile in a graph at 512; engine: a step with its host, from 145 on")
    print(f"{'slots':>6}{'at 250':>11}{'floor':>7}{'at 512':>11}{'floor':>7}{'compiled':>10}{'engine':>9}")
    for count in slots:
        line = f"{count:>6}"
        for context in (250, 512):
            place(steps, count, context - REPLAYS // 2)
            floor = 1e3 * max((weights + count * context * position_bytes) / BANDWIDTH, count * weights / OPERATIONS)
            line += f"{milliseconds(lambda n=count: steps._decodes.run(n)):>11.3f}{floor:>7.2f}"
        print(f"{line}{COMPILED.get(count, float('nan')):>10.2f}{whole(engine, count):>9.3f}", flush=True)


def whole(engine: LLMEngine, requests: int) -> float:
    """Milliseconds a step of so many requests that all decode, host and all, for 60 steps."""
    for key in range(requests):
        engine.add(job(key))
    while engine.waiting:
        engine.step()
    began = time.monotonic()
    for _ in range(60):
        engine.step()
    spent = time.monotonic() - began
    for key in range(requests):
        engine.cancel(key)
    return 1e3 * spent / 60


def time_prefill(engine: LLMEngine) -> None:
    steps, weights = batched(engine), parameter_bytes(engine.model)
    print(f"{'requests':>9}{'rows':>6}{'ms':>8}{'floor':>7}{'host ms':>9}")
    for requests in (1, 4, 8, 16):
        pieces = [Piece(n, 0, np.arange(PREFILLED, dtype=np.int64), None) for n in range(requests)]
        rows = sum(steps.cost(len(piece.ids)) for piece in pieces)
        if rows > steps.longest:
            continue
        steps.prefill(pieces)
        floor = 1e3 * max(weights / BANDWIDTH, rows * weights / OPERATIONS)
        spent = milliseconds(lambda n=rows: steps._prefills.run(n))
        torch.cuda.synchronize()
        began = time.monotonic()
        steps.prefill(pieces)
        host = 1e3 * (time.monotonic() - began)
        print(f"{requests:>9}{rows:>6}{spent:>8.3f}{floor:>7.2f}{host:>9.3f}")


def profile(engine: LLMEngine, slots: Sequence[int]) -> None:
    steps = batched(engine)
    for count in slots:
        place(steps, count, 500)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
            steps._decodes.run(count)
            torch.cuda.synchronize()
        spent: dict[str, list[float]] = defaultdict(list)
        for event in record.events():
            spent[event.name[:70]].append(event.device_time)
        total = sum(map(sum, spent.values()))
        print(f"{count} slots at context 500: {total:.0f} us in {sum(map(len, spent.values()))} kernels")
        for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:12]:
            print(f"{sum(times):>9.0f} us in {len(times):>3}, {sum(times) / len(times):6.1f} each  {name}")


def variants(engine: LLMEngine, slots: Sequence[int]) -> None:
    """Of a replayed step at context 500, by how its operations are computed."""
    steps = batched(engine)
    usual = {name: getattr(steps.ops, name) for name in VARIANTS[0][1]}
    print(f"{'ms at context 500, by slots':<32}" + "".join(f"{count:>8}" for count in slots))
    for title, options in VARIANTS:
        vars(steps.ops).update(usual | options)
        line = f"{title:<32}"
        for count in slots:
            graphs: Captured[int] = Captured(steps.run_decode, steps._state.device)
            place(steps, count, 500 - REPLAYS // 2)
            line += f"{milliseconds(partial(graphs.run, count)):>8.3f}"
        print(line, flush=True)
    vars(steps.ops).update(usual)


def part(title: str, work: Callable[[], None]) -> None:
    """Runs one part; a failure is shown and hides no other part."""
    print(f"\n{title}", flush=True)
    began = time.monotonic()
    try:
        work()
    except Exception:
        print(traceback.format_exc(limit=-4))
    print(f"[{time.monotonic() - began:.1f} s]", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--slots", default="1,32,64,128,256")
    options = parser.parse_args()
    slots = [int(count) for count in options.slots.split(",")]
    began = time.monotonic()
    model = load_llm(ModelDirectory.open(options.model), torch.device("cuda"), dtype_of(options.dtype))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.dtype}; ", end="")
    print(f"model {torch.cuda.memory_allocated() / 2**30:.2f} GiB in {time.monotonic() - began:.1f} s")
    with torch.inference_mode():
        engines: list[LLMEngine] = []

        def capture() -> None:
            for what in ("kernels compiled", "again"):
                engines.clear()
                held, began = torch.cuda.memory_reserved(), time.monotonic()
                engines.append(LLMEngine(model, slots=max(slots), max_length=LENGTH, prefill_tokens=2048))
                torch.cuda.synchronize()
                cache = batched(engines[0])._cache.keys.nbytes * 2 / 2**30
                grown = (torch.cuda.memory_reserved() - held) / 2**30
                print(f"{what}: {time.monotonic() - began:.2f} s, {grown:.2f} GiB of which cache {cache:.2f}")

        part(f"Capture, {max(slots)} slots", capture)
        part("Steps", lambda: time_steps(engines[0], slots))
        part("Prefill", lambda: time_prefill(engines[0]))
        part("Tokens, against plain torch", lambda: compare(model, 24, 40))
        part("Kernels of a step", lambda: profile(engines[0], slots))
        part("Variants", lambda: variants(engines[0], slots))
        engines.clear()
        part("Tokens in float32, against plain torch", lambda: compare(model.float(), 24, 40))


if __name__ == "__main__":
    main()
