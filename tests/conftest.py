"""What every test has: single-threaded torch, so that figures and processes do not fight over the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
