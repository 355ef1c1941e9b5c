"""Times the packed flow on a GPU: a solver step and the making of features, by chunks in the batch; error by dtype.

    python -m benchmarks.flow_ticks FOLDER

FOLDER is a model directory (benchmarks/make_model.py). Steps run at the past of the last hop of a 5 s request with a
prompt of 3 s (8 chunks). The floor is the larger of operations at 800 TFLOP/s and bytes at 3 TB/s.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_ops import TorchOps
from lighttts.engine.flow_pages import RESERVED, PagePool
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec, FlowHop, load_flow

PAST = 6
RATE, BANDWIDTH = 800e12, 3.0e12


def task(flow: CausalMaskedDiffWithXvec, pool: PagePool, chunks: int, past: int, seed: int) -> FlowTask:
    """Chunks behind `past` others whose pages hold what they hold."""
    numbers = torch.Generator().manual_seed(seed)
    chunk, ahead = flow.config.encoder.chunk, flow.config.encoder.look_ahead
    tokens = torch.randint(flow.config.vocabulary, (chunk * chunks + ahead,), generator=numbers)
    pages = [pool.take() for _ in range(past + chunks)]
    speaker = torch.randn(flow.config.estimator.out_channels, generator=numbers).to(flow.device, flow.dtype)
    prompt = torch.randn(150, flow.config.estimator.out_channels, generator=numbers).to(flow.device, flow.dtype)
    return FlowTask(pages, past, tokens.numpy().astype(np.int32), False, speaker, prompt)


def milliseconds(run: object, times: int = 20) -> float:
    assert callable(run)
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


def floor_ms(flow: CausalMaskedDiffWithXvec, blocks: int) -> tuple[float, float]:
    """Milliseconds for the operations and for the bytes of one solver step."""
    estimator, shape = flow.decoder.estimator, flow.decoder.shape
    weights = sum(p.numel() for p in estimator.parameters())
    rows, frames = 2 * blocks, 50
    columns = 50 * (PAST + 2)
    operations = 2 * rows * frames * (weights + 2 * columns * shape.width * shape.layers)
    past = rows * columns * shape.layers * 2 * shape.width
    return 1e3 * operations / RATE, 1e3 * flow.dtype.itemsize * (weights + past) / BANDWIDTH


def ticks(flow: CausalMaskedDiffWithXvec, pool: PagePool, sizes: list[int]) -> None:
    batch = FlowBatch(flow, pool, max(sizes))
    print("chunks   ms a step   operations   bytes   features ms")
    for size in sizes:
        began = time.monotonic()
        tasks = [task(flow, pool, min(2, size), PAST, seed) for seed in range(max(1, size // 2))]
        batch.join(tasks)
        batch.tick(tasks)
        torch.cuda.synchronize()
        captured = time.monotonic() - began
        step = milliseconds(lambda tasks=tasks: batch.tick(tasks))
        features = milliseconds(lambda size=size: batch._features.run((min(16, size), 8)))
        operations, moved = floor_ms(flow, size)
        print(f"{size:6}{step:12.2f}{operations:13.2f}{moved:8.2f}{features:14.2f}   captured in {captured:.1f} s")
        for done in tasks:
            batch.leave(done)
            for page in done.pages:
                pool.drop(page)
    works = [task(flow, pool, 2, PAST, seed) for seed in range(max(sizes) // 4)]
    profile(batch, works)
    for work in works:
        for page in work.pages:
            pool.drop(page)


def profile(batch: FlowBatch, tasks: list[FlowTask]) -> None:
    """Where one solver step spends the GPU."""
    batch.join(tasks)
    batch.tick(tasks)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        batch.tick(tasks)
        torch.cuda.synchronize()
    table = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
    for row in table[:18]:
        print(f"{row.self_device_time_total / 1e3:8.3f} ms {row.count:5}  {row.key[:90]}")


def mels(flow: CausalMaskedDiffWithXvec, plain: bool) -> torch.Tensor:
    """One request of six chunks, in hops of two, by the packed flow."""
    pool = PagePool(flow, RESERVED + 8)
    batch = FlowBatch(flow, pool, 4, TorchOps() if plain else None)
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(flow.config.vocabulary, (153,), generator=numbers).numpy().astype(np.int32)
    speaker = flow.start(torch.randn(flow.config.speaker_size, generator=numbers), torch.zeros(0, 80)).speaker
    prompt = torch.randn(150, 80, generator=numbers).to(flow.device, flow.dtype)
    pages, mel = [], []
    for at in range(0, 150, 50):
        pages += [pool.take(), pool.take()]
        work = FlowTask(list(pages), at // 25, tokens[at : at + 53], False, speaker, prompt)
        batch.join([work])
        while not batch.tick([work]):
            pass
        mel.append(batch.mel(work))
        batch.leave(work)
    return torch.cat(mel).double().cpu()


def reference(directory: ModelDirectory) -> torch.Tensor:
    """The same request by the model's own streaming in float32 on the GPU."""
    flow = load_flow(directory, "cuda")
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(flow.config.vocabulary, (153,), generator=numbers).to("cuda")
    state = flow.start(torch.randn(flow.config.speaker_size, generator=numbers), torch.zeros(0, 80))
    prompt = torch.randn(150, 80, generator=numbers).to("cuda")
    state = replace(state, prompt=prompt)
    mel = []
    for at in range(0, 150, 50):
        [result] = flow.advance([FlowHop(state, tokens[at : at + 53], False)])
        assert result.state is not None
        state = result.state
        mel.append(result.mel)
    return torch.cat(mel).double().cpu()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Times the packed flow on a GPU.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="1,2,4,8,16,32,48,64")
    parser.add_argument("--no-check", action="store_true")
    arguments = parser.parse_args()
    directory = ModelDirectory.open(arguments.folder)
    if not arguments.no_check:
        torch.backends.cuda.matmul.allow_tf32 = False
        truth = reference(directory)
        print("mel against float32, of its deviation:      worst       RMS")
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            flow = load_flow(directory, "cuda", dtype)
            for plain in (True, False):
                error = (mels(flow, plain) - truth) / truth.std()
                name = f"{str(dtype)[6:]} {'torch' if plain else 'kernels'}"
                print(f"{name:38}{error.abs().max():11.2e}{error.square().mean().sqrt():10.2e}")
    sizes = [int(size) for size in arguments.sizes.split(",")]
    flow = load_flow(directory, "cuda", torch.bfloat16)
    pool = PagePool(flow, RESERVED + 8 * max(sizes) // 2)
    print(f"page {PagePool.page_bytes(flow) / 1e6:.1f} MB, pool {torch.cuda.memory_allocated() / 1e9:.1f} GB")
    ticks(flow, pool, sizes)


if __name__ == "__main__":
    main()
