"""lighttts-broker: the daemon's entry point."""

from __future__ import annotations

import signal
import sys

from lighttts.broker.app import App
from lighttts.config import Config
from lighttts.daemon import run_daemon
from lighttts.transport.keyfiles import KeyFolder
from lighttts.transport.sockets import SocketOptions


def serve(config: Config) -> int:
    """Runs the broker until SIGTERM or SIGINT, which end it as `App.terminate` says."""
    security = config.security
    options = SocketOptions(
        connections=security.connections, ipc_mode=int(security.ipc_mode, 8), allow_plain=security.allow_plain
    )
    app = App(config.broker, options=options, keys=KeyFolder(security.keys) if security.keys else None)
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: app.terminate())
        app.run()
    finally:
        app.close()
    return 0


def main() -> int:
    """The console script; returns the exit code."""
    return run_daemon("broker", "Moves LightTTS requests between clients and workers.", serve)


if __name__ == "__main__":
    sys.exit(main())
