"""What a burst leaves in the heap goes back to the system."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes
from lighttts.metrics import resident_bytes
from lighttts.workers.heap import give_back_heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = resident_bytes()
blocks = [libc.malloc(64_000) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 64_000)
for block in blocks[:-1]:
    libc.free(block)
kept = resident_bytes() - before
give_back_heap()
print(kept, resident_bytes() - before)
"""


def test_free_pages_below_a_used_one_are_returned() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    kept, left = map(int, printed.split())
    assert kept > 50_000_000
    assert left < kept / 4
