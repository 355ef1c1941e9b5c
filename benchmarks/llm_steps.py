"""Milliseconds of a language model's decode step on a GPU, as a CUDA graph and launched piece by piece, in one run.

    python -m benchmarks.llm_steps MODEL [--dtype bfloat16] [--slots 1,32,64,128] [--length 253]

Every slot is busy with a zero-shot request of 40 text tokens and a prompt of 75 speech tokens. Both ways must make the
same tokens. MODEL is a directory such as `benchmarks.make_model` makes. Prefill and reading ids back are included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.models.directory import ModelDirectory
from lighttts.models.llm import SpeechLM, load_llm
from lighttts.workers.model import dtype_of

TEXT, PROMPT_TEXT, PROMPT = 40, 12, 75


def run(engine: LLMEngine, requests: int) -> tuple[dict[object, list[int]], float]:
    """The tokens of so many requests at once, and milliseconds a step."""
    random = np.random.default_rng(0)
    for number in range(requests):
        text = random.integers(0, 100, PROMPT_TEXT + TEXT).astype(np.int32)
        prompt = random.integers(0, 100, PROMPT).astype(np.int32)
        engine.add(GenerateJob(number, text, TEXT, prompt, number, np.zeros(0, np.int32)))
    tokens: dict[object, list[int]] = {number: [] for number in range(requests)}
    began, steps = time.monotonic(), 0
    while engine.busy:
        for step in engine.step():
            tokens[step.key] += step.tokens
        steps += 1
    return tokens, 1000 * (time.monotonic() - began) / steps


def measure(model: SpeechLM, slots: int, length: int) -> None:
    """Both ways at one number of slots."""
    began = time.monotonic()
    engine = LLMEngine(model, slots=slots, max_length=length)
    captured = time.monotonic() - began
    run(engine, slots)
    graph, graph_ms = run(engine, slots)
    engine._graphs = None
    run(engine, slots)
    eager, eager_ms = run(engine, slots)
    equal = sum(graph[key] == eager[key] for key in graph)
    print(f"{slots:>5}{graph_ms:>12.2f}{eager_ms:>12.2f}{equal:>8} of {slots}{captured:>12.2f}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--slots", default="1,32,64,128")
    parser.add_argument("--length", type=int, default=253)
    options = parser.parse_args()
    model = load_llm(ModelDirectory.open(options.model), torch.device("cuda"), dtype_of(options.dtype))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.dtype}")
    print(f"{'slots':>5}{'graph ms':>12}{'eager ms':>12}{'equal':>13}{'capture s':>12}")
    for slots in map(int, options.slots.split(",")):
        measure(model, slots, options.length)


if __name__ == "__main__":
    main()
