"""lighttts-gpu: a llm and a decode worker in one process, for a GPU that both share."""

from __future__ import annotations

from typing import NoReturn

from lighttts.workers import decode, llm
from lighttts.workers.service import run_worker


def main() -> NoReturn:
    """Console script."""
    run_worker("gpu", "A llm and a decode worker in one process.", llm.service, decode.service)


if __name__ == "__main__":
    main()
