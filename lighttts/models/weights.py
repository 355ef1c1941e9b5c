"""Reading `.pt` files as tensors, never as objects, and putting them into modules."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lighttts.errors import ModelError

_PREFIX = "generator."
_HALF = (torch.float16, torch.bfloat16)


def load_checkpoint(path: Path) -> dict[str, object]:
    """The mapping saved in a `.pt` file, on the CPU, read with `weights_only=True`. Raises `ModelError`.

    The tensors are copies: mapped from the file they would kill the process if somebody replaced it in place.
    """
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise ModelError(f"{path} cannot be read ({reason}); restore the published file.") from error
    except Exception as error:  # the unpickler raises whatever Python raises on the bytes it meets
        raise ModelError(f"{path} is truncated, corrupt or no PyTorch file; restore the published file.") from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ModelError(f"{path} does not hold a mapping of names; restore the published file.")
    return loaded


def load_weights(path: Path, *, keep_half: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.pt` file by name. A `generator.` prefix is dropped; float16 and bfloat16 become float32.

    `keep_half` leaves half precision tensors as stored. Numbers saved beside the tensors (an epoch count) are ignored.
    Raises `ModelError` if the file is unreadable or holds no tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in load_checkpoint(path).items():
        if isinstance(value, Tensor):
            upcast = value.dtype in _HALF and not keep_half
            tensors[name.removeprefix(_PREFIX)] = value.float() if upcast else value
        elif not isinstance(value, int | float):
            raise ModelError(f"{path}: {name} is not a tensor, where weights hold only such; restore the file.")
    if not tensors:
        raise ModelError(f"{path} holds no tensors; restore the published file.")
    return tensors


def load_into(module: nn.Module, weights: Mapping[str, Tensor], name: str, *, assign: bool = False) -> None:
    """Copy `weights` into `module`; every name and shape must match. `name` is the file's, for the `ModelError`.

    With `assign` nothing is copied: the tensors take the place of the module's own, which may be on the meta device.
    """
    wanted = module.state_dict()
    for what, keys in (
        ("lacks the tensor", wanted.keys() - weights.keys()),
        ("holds the unknown tensor", weights.keys() - wanted.keys()),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(f"{name} {what} {min(keys)}{more}; it is not of the model that the yaml describes.")
    for key, tensor in wanted.items():
        if tensor.shape != weights[key].shape:
            raise ModelError(
                f"{name}: {key} has shape {tuple(weights[key].shape)} where the yaml asks for {tuple(tensor.shape)}; "
                "the two files are not of one model."
            )
    module.load_state_dict(weights, assign=assign)


def damage(path: Path) -> str | None:
    """The name of the first damaged entry of a `.pt` file by its checksums, None if it is whole. Reads all of it."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, zipfile.BadZipFile):
        return path.name


def fingerprint(path: Path) -> str:
    """Hexadecimal digest that changes with a file's content, at the cost of its directory if it is a `.pt` file.

    A zip's directory holds size and CRC-32 of each tensor; any other file is read whole.
    """
    digest = hashlib.sha256()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                digest.update(f"{entry.filename}\0{entry.file_size}\0{entry.CRC}\0".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
