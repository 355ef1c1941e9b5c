"""Kernels run on the CPU, by Triton's interpreter."""

import os

# Read when a module with kernels is imported.
os.environ["TRITON_INTERPRET"] = "1"
