"""What a GPU computes between products with matrices, written in Triton, which compiles it at the first start."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")


def missing() -> str:
    """What Triton needs to compile kernels and this machine lacks, with what installs it; empty if nothing."""
    lacks = []
    if importlib.util.find_spec("triton") is None:
        lacks.append("the package triton (it comes with the CUDA build of torch)")
    if not shutil.which(os.environ.get("CC", "")) and not any(map(shutil.which, _COMPILERS)):
        lacks.append("a C compiler (sudo apt-get install gcc)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacks.append("Python's headers (sudo apt-get install python3-dev)")
    return " and ".join(lacks)
