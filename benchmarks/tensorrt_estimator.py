"""Builds the TensorRT engine of a model's estimator, compares it with PyTorch on the GPU and times it.

    python -m benchmarks.tensorrt_estimator FOLDER [--dtype float16] [--cache FOLDER]

FOLDER: a model directory. Needs the package tensorrt and an NVIDIA GPU. Each line: rows x new frames after past frames,
the velocity's largest error over its deviation against PyTorch in float32, milliseconds a call as it is and replayed as
a CUDA graph, and the floor: weights and past read once at the GPU's memory rate, or the products at its peak, whichever
is longer (an H100's 3.35 TB/s and 990 TFLOP/s in half precision).
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lighttts.models.directory import ModelDirectory
from lighttts.models.estimator import CausalConditionalDecoder
from lighttts.models.flow import load_flow
from lighttts.models.streaming import StreamWindow, chunk_mask
from lighttts.tensorrt.backend import Backend
from lighttts.tensorrt.cache import EngineCache
from lighttts.tensorrt.library import WANTED, find_library
from lighttts.tensorrt.velocity import CachedVelocity, Velocity

CASES = ((2, 50, 0), (2, 50, 400), (8, 50, 400), (32, 50, 400), (32, 50, 1000), (2, 400, 0))
BYTES_A_SECOND, OPERATIONS_A_SECOND = 3.35e12, 990e12
DEVICE = torch.device("cuda", 0)


class Call:
    """One evaluation of random inputs."""

    def __init__(self, velocity: CachedVelocity, rows: int, time: int, past: int) -> None:
        shape = velocity.shape
        torch.manual_seed(0)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, device=DEVICE).to(velocity.dtype)

        self.size = rows, time, past
        self.x, self.mu, self.prompt = (draw(rows, time, shape.mel) for _ in range(3))
        self.speaker, self.t = draw(rows, shape.mel), torch.rand(rows, device=DEVICE)
        self.past = draw(shape.layers, 2, rows, past, shape.width)
        self.tails = draw(rows, 2, shape.channels)
        self.mask = torch.ones(rows, past + time, device=DEVICE, dtype=velocity.dtype)
        self._velocity = velocity

    def __call__(self) -> Velocity:
        conditions = (self.x, self.mu, self.speaker, self.prompt, self.t, self.mask)
        return self._velocity.velocity(*conditions, self.past, self.tails)

    def in_torch(self, estimator: CausalConditionalDecoder) -> Tensor:
        rows, time, past = self.size
        old, new = (torch.full((rows,), frames, device=DEVICE) for frames in (past, time))
        cache = torch.cat([self.past.float(), self.past.new_zeros(*self.past.shape[:3], time, self.past.size(4))], 3)
        mask = chunk_mask(old, new, past, time, estimator.config.chunk)
        ends = (new[:, None] + torch.arange(2, device=DEVICE))[..., None]
        window = StreamWindow(mask, past, cache, self.tails.float(), ends, old[:, None])
        given = (part.float() for part in (self.x, self.mu, self.speaker, self.prompt))
        out: Tensor = estimator(*given, estimator.time_mlp(self.t), window)
        return out

    def floor(self, parameters: int) -> float:
        """Milliseconds."""
        rows, time, past = self.size
        read = self.x.itemsize * (parameters + self.past.numel())
        attended = 4 * self.past.size(0) * self.past.size(4) * rows * time * (past + time)
        return 1e3 * max(read / BYTES_A_SECOND, (2 * parameters * rows * time + attended) / OPERATIONS_A_SECOND)


def milliseconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Of one call, in the middle of `repeats`."""
    for _ in range(3):
        call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairwise(marks))[repeats // 2]


def replayed(call: Callable[[], object]) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return milliseconds(graph.replay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    library = find_library()
    if library is None:
        print(f"tensorrt is not installed: {WANTED}")
        return
    directory = ModelDirectory.open(options.folder)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        flow = load_flow(directory, DEVICE, getattr(torch, options.dtype))
        backend = Backend(library, DEVICE, EngineCache(options.cache or Path(folder)))
        velocity = backend.cached(directory, flow)
        plain = load_flow(directory, DEVICE).decoder.estimator
        parameters = sum(parameter.numel() for parameter in plain.parameters())
        print(f"TensorRT {library.__version__}, {torch.cuda.get_device_name(DEVICE)}, {options.dtype}")
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            for case in CASES:
                try:
                    call = Call(velocity, *case)
                    reference = call.in_torch(plain)
                    error = (call().velocity.float() - reference).abs().max() / reference.std()
                    times = f"{milliseconds(call):.3f} ms, replayed {replayed(call):.3f} ms"
                    print("{} x {} after {}:".format(*case), f"error {error:.1e}, {times}, floor", end=" ")
                    print(f"{call.floor(parameters):.3f} ms", flush=True)
                except Exception:
                    traceback.print_exc()


if __name__ == "__main__":
    main()
