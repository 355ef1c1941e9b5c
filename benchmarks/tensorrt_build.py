"""Exports the velocity estimator and builds TensorRT engines of it without a GPU, which TensorRT for RTX can.

    python -m benchmarks.tensorrt_build FOLDER [--capability SM89] [--dtype float16 ...]

FOLDER: a model directory. Needs the package tensorrt-rtx, whose engines run on GPUs of its capabilities only: 7.5, 8.6,
8.9 and 12.0. What is shown is that the library reads the graph and builds it with the worker's profile.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.tensorrt.backend import HOPS, cached_profile
from lighttts.tensorrt.builder import build_plan
from lighttts.tensorrt.export import export_estimator

DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--capability", default="SM89")
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=DTYPES)
    options = parser.parse_args()
    library = importlib.import_module("tensorrt_rtx")
    directory = ModelDirectory.open(options.folder)

    def configure(config: object) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, options.capability), 0)

    print(f"{library.__name__} {library.__version__}, torch {torch.__version__}, {options.capability}")
    for dtype in options.dtype:
        flow = load_flow(directory, dtype=getattr(torch, dtype))
        began = time.monotonic()
        graph = export_estimator(flow.decoder.estimator)
        exported = time.monotonic()
        plan = build_plan(library, graph, cached_profile(flow.config.estimator.chunk, HOPS), configure)
        built = time.monotonic()
        sizes = f"graph {len(graph) / 1e6:.0f} MB, engine {len(plan) / 1e6:.0f} MB"
        print(f"{dtype}: exported in {exported - began:.1f} s, built in {built - exported:.1f} s; {sizes}")


if __name__ == "__main__":
    main()
