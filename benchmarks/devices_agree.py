"""Whether a GPU computes what the CPU does: both engines on the tiny reference model, in fp32.

    python benchmarks/devices_agree.py [--device cuda]

Prints how many token sequences are equal and the largest differences of mel and audio, relative to their deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from lighttts.engine.decode import DecodeEngine, VoicePrompt
from lighttts.engine.llm import GenerateJob, LLMEngine
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import load_hift
from lighttts.models.llm import load_llm

TINY = Path(__file__).resolve().parents[1] / "tests/golden/cosyvoice2-tiny"
REQUESTS = 5


def tokens(directory: ModelDirectory, device: torch.device) -> list[list[int]]:
    """Speech tokens of requests that run together."""
    engine = LLMEngine(load_llm(directory, device), slots=REQUESTS, max_length=200, prefill_tokens=64)
    for seed in range(REQUESTS):
        random = np.random.default_rng(seed)
        text = random.integers(0, 50, 4).astype(np.int32)
        prompt = random.integers(0, 100, 9).astype(np.int32)
        engine.add(GenerateJob(seed, text, len(text), prompt, seed, np.zeros(0, np.int32)))
    made: list[list[int]] = [[] for _ in range(REQUESTS)]
    while engine.busy:
        for step in engine.step():
            made[int(str(step.key))].extend(step.tokens)
    return made


def speech(directory: ModelDirectory, device: torch.device) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mel (n, 80) and audio (m,) of one streamed request."""
    golden = load_file(TINY / "golden.safetensors")
    engine = DecodeEngine(load_flow(directory, device), load_hift(directory, device), max_batch=8, max_streams=8)
    prompt = golden["flow.prompt_token"][0].astype(np.int32)
    voice = VoicePrompt("v", golden["flow.embedding"][0], prompt, golden["flow.prompt_feat"][0])
    engine.open(0, voice, seed=1)
    engine.feed(0, golden["flow.token"][0].astype(np.int32), True)
    steps = []
    while engine.busy:
        steps += engine.step()
    return np.concatenate([step.mel for step in steps]), np.concatenate([step.audio for step in steps])


def main() -> None:
    """Runs both devices and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    directory, cpu = ModelDirectory.open(TINY), torch.device("cpu")
    pairs = list(zip(tokens(directory, cpu), tokens(directory, device), strict=True))
    print(f"token sequences equal: {sum(a == b for a, b in pairs)} of {len(pairs)}")
    for name, a, b in zip(("mel", "audio"), speech(directory, cpu), speech(directory, device), strict=True):
        print(f"{name}: largest difference {np.abs(a - b).max() / a.std():.2e} of its deviation, {a.shape}")


if __name__ == "__main__":
    main()
