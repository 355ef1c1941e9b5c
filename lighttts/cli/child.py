"""Runs one daemon's `main` under a warden: ``python -m lighttts.cli.child WARDEN_PID MODULE [argument]...``.

The daemon is killed by the kernel when its warden is gone, however the warden ended.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has this process killed when `parent`, its parent process, ends; ends it now if that has happened."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Runs the daemon and returns its exit code."""
    _, warden, module, *arguments = sys.argv
    die_with(int(warden))
    name = f"lighttts-{module.rpartition('.')[2] if 'workers' in module else 'broker'}"
    sys.argv = [name, *arguments]
    try:
        run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "lighttts":
            raise
        extra = "server" if module.startswith("lighttts.broker") else "worker"
        sys.stderr.write(f"{name}: the Python package {error.name} is missing: pip install 'lighttts[{extra}]'\n")
        return 69
    code: int = run()
    return code


if __name__ == "__main__":
    sys.exit(main())
