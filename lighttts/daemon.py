"""What every daemon's command line has in common: options, configuration, logs, and errors as sentences."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lighttts import __version__, logs
from lighttts.config import Config, load_config
from lighttts.errors import LightTTSError


def run_daemon(service: str, description: str, main: Callable[[Config], int], argv: Sequence[str] | None = None) -> int:
    """Parses the command line, loads the configuration, configures logs and runs `main`; returns the exit code.

    A `LightTTSError` becomes one sentence on stderr and its class' exit code; Ctrl-C before signals are handled, 130.
    """
    options = parser(service, description).parse_args(argv)
    try:
        config = load_config(options.config, overrides=options.set)
        logs.configure(service, config.log)
        _raise_file_limit()
        return main(config)
    except LightTTSError as error:
        print(f"lighttts-{service}: {error.text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"lighttts-{service}: interrupted", file=sys.stderr)
        return 130


def _raise_file_limit() -> None:
    """Lets this process open as many files as it may: a socket that cannot be accepted ends libzmq."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def parser(service: str, description: str) -> argparse.ArgumentParser:
    """The options of a daemon."""
    result = argparse.ArgumentParser(
        prog=f"lighttts-{service}",
        description=description,
        epilog="Every key of the configuration can also be set by environment, for example "
        "LIGHTTTS_BROKER__CLIENTS=tcp://0.0.0.0:5570. SIGTERM drains, a second SIGTERM stops at once.",
    )
    result.add_argument("--config", type=Path, metavar="FILE", help="configuration file (see conf/lighttts.yaml)")
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key: --set broker.max_requests=64"
    )
    result.add_argument("--version", action="version", version=f"lighttts {__version__}")
    return result
