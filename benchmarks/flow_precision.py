"""What the flow's kernels and its precision change of the mel, at a model's own dimensions, on a GPU.

    python -m benchmarks.flow_precision MODEL

MODEL is a directory such as `benchmarks.make_model` makes, of either version. Three requests join and leave between
solver steps. Printed is how far the mel is from that of plain torch in float32, relative to its deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighttts.engine.flow_batch import FlowBatch, FlowTask
from lighttts.engine.flow_ops import FlowOps, TorchOps
from lighttts.engine.flow_pages import RESERVED, PagePool
from lighttts.kernels.flow import TritonOps
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow

CHUNKS = 6


@torch.inference_mode()
def mel(directory: ModelDirectory, ops: FlowOps, dtype: torch.dtype) -> Tensor:
    """(300, 80), of all three requests."""
    flow = load_flow(directory, "cuda", dtype)
    pool = PagePool(flow, RESERVED + CHUNKS)
    batch = FlowBatch(flow, pool, CHUNKS, ops)
    state = flow.start(torch.ones(flow.config.speaker_size), torch.zeros(0, flow.config.mel))
    numbers = np.random.default_rng(5)

    def task(tokens: int, chunks: int, final: bool) -> FlowTask:
        ids, pages = numbers.integers(0, 4000, tokens).astype(np.int32), [pool.take() for _ in range(chunks)]
        return FlowTask(pages, 0, ids, final, state.speaker, state.prompt)

    tasks = [task(75, 3, True), task(53, 2, False), task(28, 1, False)]
    batch.join(tasks[:2])
    batch.tick(tasks[:2])
    batch.join(tasks[2:])
    while unfinished := [each for each in tasks if each.done < batch.steps]:
        batch.tick(unfinished)
    return torch.cat([batch.mel(each) for each in tasks]).float()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    directory = ModelDirectory.open(parser.parse_args().model)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    exact = mel(directory, TorchOps(), torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for ops in (TorchOps(), TritonOps()):
            error = (mel(directory, ops, dtype) - exact) / exact.std()
            largest, mean = float(error.abs().max()), float(error.square().mean().sqrt())
            print(f"{dtype!s:<16}{type(ops).__name__:<11}max {largest:.2e}  root mean square {mean:.2e}", flush=True)


if __name__ == "__main__":
    main()
