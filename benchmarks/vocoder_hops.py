"""What the vocoder's hops cost on a GPU: passes replayed as CUDA graphs against the reference, kernel by kernel.

    python -m benchmarks.vocoder_hops MODEL [--batch 32]

MODEL is a directory such as `benchmarks.make_model` makes. Printed are the error of each precision against the
reference in float32, relative to the audio's standard deviation; milliseconds of a pass beside its floor, which is its
operations at `FLOPS` or its weights and activations, once from layer to layer, at `BYTES`; and milliseconds of a whole
call. A part that fails says so, and the others go on.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from lighttts.engine.vocoder import LENGTHS, Vocoder
from lighttts.engine.vocoder_ops import TorchOps
from lighttts.models.directory import ModelDirectory
from lighttts.models.hift import HiFTGenerator, load_hift
from lighttts.models.hift_stream import OVERLAP, VocoderHop, VocoderResult, VocoderState, vocode

FLOPS, BYTES = 800e12, 3.0e12
"""A second, of an H100: half precision tensor operations and memory traffic that can be had."""
PRECISIONS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, True),
    "bfloat16": (torch.bfloat16, True),
}


def hops_of(model: HiFTGenerator, frames: Sequence[int], *, final: bool = False) -> list[VocoderHop]:
    """Hops that, with what is held back, have so many frames."""
    generator = torch.Generator(model.device).manual_seed(len(frames))
    state = held_state(model, generator)
    return [
        VocoderHop(state, torch.randn(count - OVERLAP, 80, device=model.device, generator=generator), final, seed)
        for seed, count in enumerate(frames)
    ]


def held_state(model: HiFTGenerator, generator: torch.Generator) -> VocoderState:
    mel = torch.randn(30, 80, device=model.device, generator=generator)
    state = vocode(model, [VocoderHop(None, mel, False, 5)])[0].state
    assert state is not None
    return state


def operations(model: HiFTGenerator) -> tuple[float, float, float]:
    """Operations of the convolutions of a mel frame, numbers that pass from layer to layer, and all weights."""
    macs, numbers, weights = 0.0, 0.0, 0.0
    frames = 100
    hooks = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs, numbers, weights
        assert isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d)
        transposed = isinstance(module, torch.nn.ConvTranspose1d)
        positions = output.size(2) / (module.stride[0] if transposed else 1)
        weights += module.weight.numel()
        macs += module.weight.numel() * positions / frames
        numbers += 2 * output[0].numel() / frames

    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
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


def precision_table(model: HiFTGenerator) -> None:
    """Each precision's error over hops of every length, in a batch of mixed ones.

    Only what is used is measured with the kernels, the rest in plain torch, where half precision sums are rounded too.
    """
    hops = hops_of(model, [LENGTHS[-1], 58, 31, 108, 20, 208, 58, 9 + OVERLAP])
    torch.backends.cudnn.allow_tf32 = False
    reference = torch.cat([result.audio for result in vocode(model, hops)])
    print(
        f"\n{'precision':<20}{'max error':>12}{'rms error':>12}   of the audio's deviation {float(reference.std()):.4f}"
    )

    def row(name: str, tf32: bool, results: Callable[[], list[VocoderResult]]) -> None:
        torch.backends.cudnn.allow_tf32 = tf32
        error = (torch.cat([result.audio for result in results()]) - reference) / reference.std()
        print(f"{name:<20}{float(error.abs().max()):>12.2e}{float(error.square().mean().sqrt()):>12.2e}", flush=True)

    attempt(lambda: row("float16", True, lambda: Vocoder(model, max_batch=8).vocode(hops)))
    for name, (dtype, tf32) in PRECISIONS.items():
        made = partial(in_torch, model, dtype, hops)
        attempt(partial(row, f"{name}, torch", tf32, made))
    attempt(lambda: row("tf32, reference", True, lambda: vocode(model, hops)))


def in_torch(model: HiFTGenerator, dtype: torch.dtype, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
    return Vocoder(model, max_batch=len(hops), ops=TorchOps(model), dtype=dtype).vocode(hops)


def time_table(model: HiFTGenerator, vocoder: Vocoder) -> None:
    """Each pass, and the whole call with copies in and out; the reference at some batches."""
    flops, numbers, weights = operations(model)
    print(f"\n{flops / 1e9:.2f} GFLOP and {2 * numbers / 1e6:.2f} MB (half precision) a frame")
    print(f"{'frames':>6}{'batch':>6}{'floor ms':>10}{'graph ms':>10}{'a hop':>8}{'call ms':>10}{'reference ms':>14}")
    for (length, batch), replay in sorted(vocoder._passes.items()):
        hops = hops_of(model, [length] * batch)
        vocoder.vocode(hops)
        floor = 1000 * max(length * batch * flops / FLOPS, 2 * (weights + numbers * length * batch) / BYTES)
        graph, call = milliseconds(replay), milliseconds(lambda hops=hops: vocoder.vocode(hops))
        reference = milliseconds(lambda hops=hops: vocode(model, hops), 0.0) if batch in (1, 8) else 0.0
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


def timed(model: HiFTGenerator, batch: int) -> None:
    began, before = time.monotonic(), torch.cuda.memory_reserved()
    vocoder = Vocoder(model, max_batch=batch)
    torch.cuda.synchronize()
    seconds, memory = time.monotonic() - began, (torch.cuda.memory_reserved() - before) / 2**20
    print(f"\ncaptured {len(vocoder._passes)} passes in {seconds:.1f} s, {memory:.0f} MiB", flush=True)
    time_table(model, vocoder)
    for length, rows in ((LENGTHS[0], 1), (LENGTHS[-1], min(8, batch))):
        attempt(partial(profile, vocoder, length, rows))


if __name__ == "__main__":
    main()
