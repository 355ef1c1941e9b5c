"""Whether a GPU computes what the CPU does: the engines on a tiny reference model, in fp32.

    python benchmarks/devices_agree.py [--device cuda] [--version 3]

Prints how many token sequences are equal, and the largest and root-mean-square differences of mel and audio relative to
their deviation, by the plain decode engine, by the paged one, and by the latter with the vocoder that is served. Audio
differs by more than rounding: the phase of the vocoder's excitation sums up its pitch. The last line tells how much:
the CPU against itself, its pitch moved by the rounding of `PITCH_ROUNDING`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from torch.backends import cudnn

from lighttts.engine.decode import DecodeEngine, VoicePrompt
from lighttts.engine.decode_paged import PagedDecodeEngine
from lighttts.engine.decode_streams import DecodeStreams
from lighttts.engine.llm import LLMEngine
from lighttts.engine.llm_jobs import GenerateJob, LiveJob
from lighttts.engine.vocoder import Vocoder
from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.models.hift import Generator, HiFTGenerator, load_hift
from lighttts.models.llm import load_llm

GOLDEN = Path(__file__).resolve().parents[1] / "tests/golden"
REQUESTS = 5
PITCH_ROUNDING = 4e-6  # relative, of the mel that the pitch is predicted from


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


def live_tokens(directory: ModelDirectory, device: torch.device) -> list[list[int]]:
    """Speech tokens of sentences that run together and whose text comes three ids at a time."""
    engine = LLMEngine(load_llm(directory, device), slots=REQUESTS, max_length=300, prefill_tokens=64)
    none = np.zeros(0, np.int32)
    texts = {seed: np.random.default_rng(seed).integers(0, 50, 17).astype(np.int32) for seed in range(REQUESTS)}
    for seed in texts:
        engine.open(LiveJob(seed, none, none, seed, none))
    made: list[list[int]] = [[] for _ in range(REQUESTS)]
    while texts or engine.busy:
        for seed, text in list(texts.items()):
            engine.feed(seed, text[:3], last=len(text) <= 3)
            texts[seed] = text[3:]
            if len(text) <= 3:
                del texts[seed]
        for step in (step for _ in range(7) if engine.busy for step in engine.step()):
            made[int(str(step.key))].extend(step.tokens)
    return made


def plain(directory: ModelDirectory, device: torch.device) -> DecodeEngine:
    """The engine of a CPU."""
    return DecodeEngine(load_flow(directory, device), load_hift(directory, device), max_batch=8, max_streams=8)


def paged(directory: ModelDirectory, device: torch.device) -> PagedDecodeEngine:
    """The engine of a GPU."""
    models = load_flow(directory, device), load_hift(directory, device)
    return PagedDecodeEngine(*models, max_streams=8, slots=16, pages=64)


def served(directory: ModelDirectory, device: torch.device) -> PagedDecodeEngine:
    """That engine with its vocoder."""
    flow, hift = load_flow(directory, device), load_hift(directory, device)
    vocode = Vocoder(hift, max_batch=4).vocode
    return PagedDecodeEngine(flow, hift, max_streams=8, slots=16, pages=64, vocode=vocode)


def speech(directory: ModelDirectory, engine: DecodeStreams) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mel (n, 80) and audio (m,) of one streamed request."""
    golden = load_file(directory.root / "golden.safetensors")
    prompt = golden["flow.prompt_token"][0].astype(np.int32)
    voice = VoicePrompt("v", golden["flow.embedding"][0], prompt, golden["flow.prompt_feat"][0])
    engine.open(0, voice, seed=1)
    engine.feed(0, golden["flow.token"][0].astype(np.int32), True)
    steps = []
    while engine.busy:
        steps += engine.step()
    return np.concatenate([step.mel for step in steps]), np.concatenate([step.audio for step in steps])


def compare(name: str, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> None:
    """Prints how far `b` is from `a`."""
    largest, mean = np.abs(a - b).max() / a.std(), np.sqrt(np.square(a - b).mean()) / a.std()
    print(f"{name}: largest difference {largest:.2e} of its deviation, root mean square {mean:.2e}, {a.shape}")


@contextmanager
def rounded_pitch() -> Iterator[None]:
    """The vocoder with a pitch that has another rounding error."""
    random = torch.Generator().manual_seed(0)

    def moved(exact: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def pitch(model: Generator, mel: torch.Tensor, *past: object, **how: bool) -> torch.Tensor:
            return exact(model, mel * (1 + PITCH_ROUNDING * torch.randn(mel.shape, generator=random)), *past, **how)

        return pitch

    with (
        mock.patch.object(HiFTGenerator, "pitch", moved(HiFTGenerator.pitch)),
        mock.patch.object(CausalHiFTGenerator, "pitch", moved(CausalHiFTGenerator.pitch)),
    ):
        yield


def main() -> None:
    """Runs both devices and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--version", type=int, choices=(2, 3), default=2, help="of CosyVoice")
    options = parser.parse_args()
    device, cpu = torch.device(options.device), torch.device("cpu")
    directory = ModelDirectory.open(GOLDEN / f"cosyvoice{options.version}-tiny")
    pairs = list(zip(tokens(directory, cpu), tokens(directory, device), strict=True))
    print(f"token sequences equal: {sum(a == b for a, b in pairs)} of {len(pairs)}")
    pairs = list(zip(live_tokens(directory, cpu), live_tokens(directory, device), strict=True))
    equal, made = sum(a == b for a, b in pairs), sum(len(a) for a, _ in pairs)
    print(f"those of text in pieces: {equal} of {len(pairs)}, {made} tokens")
    mel, audio = speech(directory, plain(directory, cpu))
    for engine in (plain, paged, served):
        for name, a, b in zip(
            ("mel", "audio"), (mel, audio), speech(directory, engine(directory, device)), strict=True
        ):
            compare(f"{name} ({engine.__name__})", a, b)
    with cudnn.flags(enabled=True, allow_tf32=False):
        compare("audio (plain), tf32 forbidden", audio, speech(directory, plain(directory, device))[1])
    with rounded_pitch():
        compare("audio of the CPU with another rounding", audio, speech(directory, plain(directory, cpu))[1])


if __name__ == "__main__":
    main()
