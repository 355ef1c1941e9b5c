"""Builds TensorRT engines ahead of time.

    python -m lighttts.tensorrt.build MODEL_DIR [--config FILE] [--set KEY=VALUE]

With the configuration of the worker that will load them: model.device, model.dtype and decode.engine_cache count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lighttts import logs
from lighttts.config import Config, load_config
from lighttts.errors import LightTTSError
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import load_flow
from lighttts.tensorrt.backend import Backend, exportable
from lighttts.tensorrt.cache import default_folder
from lighttts.workers.model import dtype_of, pick_device


def main(argv: Sequence[str] | None = None) -> int:
    """Builds what is not in the cache; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lighttts.tensorrt.build", description="Builds the TensorRT engines that a decode worker loads."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a model directory")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the worker's configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of it")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, overrides=options.set)
        logs.configure("tensorrt-build", config.log)
        build(ModelDirectory.open(options.model), config)
    except LightTTSError as error:
        print(f"{parser.prog}: {error.text}", file=sys.stderr)
        return error.exit_code
    return 0


def build(directory: ModelDirectory, config: Config) -> None:
    """The engines of `directory` for this machine's GPU, in the configured folder. Raises as `Backend` does."""
    device = pick_device(config.model.device)
    backend = Backend.open(device, config.decode.engine_cache or default_folder())
    flow = exportable(load_flow(directory, device, dtype_of(config.model.dtype)))
    backend.cached(directory, flow)
    backend.published(directory)


if __name__ == "__main__":
    sys.exit(main())
