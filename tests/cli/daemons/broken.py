"""A daemon that cannot start, and says why as lighttts.daemon does."""

from __future__ import annotations

import sys


def main() -> int:
    print("lighttts-llm: llm.pt is missing; restore it from the published model.", file=sys.stderr)
    return 78
