"""What every test has: single-threaded torch, so that figures and processes do not fight over the cores.

And Ctrl-C as a terminal has it: whoever starts the tests in the background of a script has them, and all processes they
start, ignore SIGINT.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

pytest_plugins = ["tests.redis_server"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whatever voices the user has registered are none of a test's.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="lighttts-tests-")
# Kernels run in Triton's interpreter, if this is set before they are first imported.
os.environ["TRITON_INTERPRET"] = "1"
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
