"""What the vocoder's hops cost on a GPU: passes replayed as CUDA graphs against the reference, kernel by kernel.

    python -m benchmarks.vocoder_hops MODEL [--batch 32]

MODEL is a directory such as `benchmarks.make_model` makes, of either version. Printed are the error of each precision
against float32 in plain torch, relative to the audio's standard deviation; milliseconds of a pass beside its floor,
which is its operations at `FLOPS` or its weights and activations, once from layer to layer, at `BYTES`; and
milliseconds of a whole call. A part that fails says so, and the others go on.
"""

from __future__ import annotations

import argparse
import math
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from lighttts.engine.vocoder import HOPS, Vocoder
from lighttts.engine.vocoder_causal import CausalTorchOps
from lighttts.engine.vocoder_ops import TorchOps
from lighttts.models.causal_hift import CausalHiFTGenerator, Upsampling
from lighttts.models.conv_past import LedConv1d
from lighttts.models.directory import ModelDirectory
from lighttts.models.hift import Generator, load_hift
from lighttts.models.hift_stream import VocoderHop, VocoderResult, vocode

LAYERS = (torch.nn.Conv1d, torch.nn.ConvTranspose1d, LedConv1d)
FLOPS, BYTES = 800e12, 3.0e12
"""A second, of an H100: half precision tensor operations and memory traffic that can be had."""
PRECISIONS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, True),
    "bfloat16": (torch.bfloat16, True),
}


def hops_of(vocoder: Vocoder, model: Generator, frames: Sequence[int]) -> list[VocoderHop]:
    """Hops of so many new frames, which go on from some that `vocoder` had before."""
    generator = torch.Generator(model.device).manual_seed(len(frames))

    def mel(count: int) -> torch.Tensor:
        return torch.randn(count, model.config.bins, device=model.device, generator=generator)

    state = vocoder.vocode([VocoderHop(None, mel(60), False, 5)])[0].state
    return [VocoderHop(state, mel(count), False, seed) for seed, count in enumerate(frames)]


def operations(model: Generator) -> tuple[float, float, float]:
    """Operations of a mel frame's convolutions, numbers that pass from layer to layer, and all weights; without the
    pitch's.
    """
    macs, numbers, weights = 0.0, 0.0, 0.0
    frames = 100
    hooks = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs, numbers, weights
        assert isinstance(module, LAYERS)
        transposed = isinstance(module, torch.nn.ConvTranspose1d)
        positions = output.size(2) / (module.stride[0] if transposed else 1)
        if isinstance(module, Upsampling):
            positions *= (math.ceil((module.weight.size(2) - 1) / module.rate) + 1) / module.weight.size(2)
        weights += module.weight.numel()
        macs += module.weight.numel() * positions / frames
        numbers += 2 * output[0].numel() / frames

    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and not name.startswith("f0_predictor"):
            hooks.append(module.register_forward_hook(count))
    vocode(model, [VocoderHop(None, torch.randn(frames, 80, device=model.device), True, 0)])
    for hook in hooks:
        hook.remove()
    return 2 * macs, numbers, weights


def milliseconds(run: Callable[[], object], seconds: float = 0.15) -> float:
    """Of one run on the device, the mean of as many as take so long."""
    run()
    torch.cuda.synchronize()
    began, runs = time.monotonic(), 0
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    while runs < 3 or time.monotonic() - began < seconds:
        run()
        runs += 1
        if runs % 8 == 0:
            torch.cuda.synchronize()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / runs


def precision_table(model: Generator) -> None:
    """Each precision's error over hops of every length, in a batch of mixed ones.

    Only what is used is measured with the kernels, the rest in plain torch, where half precision sums are rounded too.
    """
    vocoder = Vocoder(model, max_batch=8)
    hops = hops_of(vocoder, model, [HOPS[-1], 50, 23, 100, 12, 200, 50, 9])
    torch.backends.cudnn.allow_tf32 = False
    reference = torch.cat([result.audio for result in in_torch(model, torch.float32, hops)])
    print(
        f"\n{'precision':<20}{'max error':>12}{'rms error':>12}   of the audio's deviation {float(reference.std()):.4f}"
    )

    def row(name: str, tf32: bool, results: Callable[[], list[VocoderResult]]) -> None:
        torch.backends.cudnn.allow_tf32 = tf32
        error = (torch.cat([result.audio for result in results()]) - reference) / reference.std()
        print(f"{name:<20}{float(error.abs().max()):>12.2e}{float(error.square().mean().sqrt()):>12.2e}", flush=True)

    attempt(lambda: row("float16", True, lambda: vocoder.vocode(hops)))
    for name, (dtype, tf32) in PRECISIONS.items():
        made = partial(in_torch, model, dtype, hops)
        attempt(partial(row, f"{name}, torch", tf32, made))


def in_torch(model: Generator, dtype: torch.dtype, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
    ops = CausalTorchOps(model) if isinstance(model, CausalHiFTGenerator) else TorchOps(model)
    return Vocoder(model, max_batch=len(hops), ops=ops, dtype=dtype).vocode(hops)


def time_table(model: Generator, vocoder: Vocoder) -> None:
    """Each pass, and the whole call with copies in and out; the reference at some batches."""
    flops, numbers, weights = operations(model)
    print(f"\n{flops / 1e9:.2f} GFLOP and {2 * numbers / 1e6:.2f} MB (half precision) a frame")
    print(f"{'frames':>6}{'batch':>6}{'floor ms':>10}{'graph ms':>10}{'a hop':>8}{'call ms':>10}{'reference ms':>14}")
    for (length, batch), replay in sorted(vocoder._passes.items()):
        hops = hops_of(vocoder, model, [length - vocoder.holding.frames] * batch)
        whole = [VocoderHop(None, torch.randn(length, 80, device=model.device), False, 1)] * batch
        vocoder.vocode(hops)
        floor = 1000 * max(length * batch * flops / FLOPS, 2 * (weights + numbers * length * batch) / BYTES)
        graph, call = milliseconds(replay), milliseconds(lambda hops=hops: vocoder.vocode(hops))
        reference = milliseconds(lambda whole=whole: vocode(model, whole), 0.0) if batch in (1, 8) else 0.0
        print(
            f"{length:>6}{batch:>6}{floor:>10.3f}{graph:>10.3f}{graph / batch:>8.3f}{call:>10.3f}{reference:>14.2f}",
            flush=True,
        )


def profile(vocoder: Vocoder, length: int, batch: int) -> None:
    """Where the time of a pass goes, by kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        vocoder._passes[length, batch]()
        torch.cuda.synchronize()
    print(f"\n{length} frames, batch {batch}:{'kernels':>12}{'ms':>10}")
    times = sorted(seen.key_averages(), key=lambda entry: -entry.device_time_total)
    for entry in times[:14]:
        print(f"{entry.key[:60]:<60}{entry.count:>6}{entry.device_time_total / 1000:>10.3f}", flush=True)


def attempt(part: Callable[[], object]) -> None:
    """Runs a part; what it raises is printed, and the next part runs all the same."""
    try:
        part()
    except Exception:
        traceback.print_exc()


@torch.inference_mode()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    model = load_hift(ModelDirectory.open(options.model), "cuda")
    # Random weights predict next to no pitch, where nearly all of the excitation would be noise.
    model.f0_predictor.classifier.bias.add_(150.0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    attempt(lambda: precision_table(model))
    attempt(lambda: timed(model, options.batch))


def timed(model: Generator, batch: int) -> None:
    began, before = time.monotonic(), torch.cuda.memory_reserved()
    vocoder = Vocoder(model, max_batch=batch)
    torch.cuda.synchronize()
    seconds, memory = time.monotonic() - began, (torch.cuda.memory_reserved() - before) / 2**20
    print(f"\ncaptured {len(vocoder._passes)} passes in {seconds:.1f} s, {memory:.0f} MiB", flush=True)
    time_table(model, vocoder)
    for length, rows in ((vocoder.lengths[0], 1), (vocoder.lengths[-1], min(8, batch))):
        attempt(partial(profile, vocoder, length, rows))


if __name__ == "__main__":
    main()
