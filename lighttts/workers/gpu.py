"""lighttts-gpu: a llm and a decode worker in one process, for a GPU that both share."""

from __future__ import annotations

import sys

from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.workers import decode, llm
from lighttts.workers.service import serve


def _run(config: Config) -> int:
    return serve(llm.service(config), decode.service(config))


def main() -> int:
    """Console script."""
    return run_daemon("gpu", "A llm and a decode worker in one process.", _run)


if __name__ == "__main__":
    sys.exit(main())
