"""What workers with a model have in common: its name, the device it runs on, and that device's gauges."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import torch
from torch import nn

from lighttts import metrics
from lighttts.errors import ConfigError
from lighttts.kernels import missing
from lighttts.logs import get_logger
from lighttts.models.directory import ModelDirectory

_HAS_NVML = importlib.util.find_spec("pynvml") is not None
"""torch reads a GPU's utilisation through this package, which comes with the driver's management tools."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_name(directory: ModelDirectory, style: str = "") -> str:
    """What a worker tells of its model: the directory's name, the beginning of a hash of its files, and its style."""
    name = f"{directory.root.resolve().name[:64]}:{directory.model_hash[:16]}"
    return f"{name}:{style}" if style else name


def pick_device(name: str) -> torch.device:
    """The device of a configured name; `auto` is a GPU if there is one. Raises `ConfigError` if it is not there."""
    gpus = torch.cuda.device_count()
    device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"model.device is {name}, but this machine has {gpus} usable GPUs: choose another, or cpu")
    if device.type == "cuda" and (lacks := missing()):
        get_logger().warning("kernels that are not compiled yet cannot be", needs=lacks)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a configured name."""
    return _DTYPES[name]


def own_stream(device: torch.device, *, high_priority: bool) -> None:
    """Gives the calling thread a CUDA stream, so that it does not wait for the work of other threads."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1 if high_priority else 0))  # type: ignore[no-untyped-call]


def watch_modules(modules: Iterable[nn.Module], moved: Callable[[], None]) -> None:
    """Has `moved` called whenever one of `modules`, which run one after another, begins."""
    for module in modules:
        module.register_forward_pre_hook(lambda *_: moved())


def observe_device(device: torch.device) -> None:
    """Updates the gauges of a GPU; of the CPU there are none."""
    if device.type != "cuda":
        return
    metrics.memory_usage.labels("cuda_allocated").set(torch.cuda.memory_allocated(device))
    metrics.memory_usage.labels("cuda_reserved").set(torch.cuda.memory_reserved(device))
    if _HAS_NVML:
        metrics.gpu_utilization.labels(str(device.index)).set(torch.cuda.utilization(device) / 100)
