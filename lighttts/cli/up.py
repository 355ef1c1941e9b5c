"""`lighttts-cli up`: broker and workers in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lighttts.cli import options as common
from lighttts.cli.signals import Stopped
from lighttts.cli.stack import STAGES, STOP_GRACE, Stack, model_directory, shared_commands, styles_served
from lighttts.errors import ConfigError, InvalidInput
from lighttts.transport.endpoints import connectable, listening

NAME = "up"
SUMMARY = "run broker and workers in the foreground"
DESCRIPTION = """\
Runs a broker and its workers in the foreground, with their logs on standard error, until Ctrl-C. The line READY on
standard output tells that texts can be spoken. If one of the daemons ends, all end: for a service that mends itself
see systemd/ in the source tree.
"""
EPILOG = """\
examples:
  lighttts-cli up
  lighttts-cli up --model pretrained_models/CosyVoice2-0.5B --set model.device=cuda
  lighttts-cli up --llm 2 --decode 2
  lighttts-cli up --keys /etc/lighttts/keys --set broker.clients=tcp://0.0.0.0:5570
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model directory (default: as configured)")
    for stage in STAGES:
        of = " for each style of the model" if stage == "llm" else ""
        parser.add_argument(f"--{stage}", type=int, default=1, metavar="N", help=f"{stage} workers{of} (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Runs until Ctrl-C or SIGTERM (0), or until a daemon ends (its error)."""
    if options.broker:
        raise InvalidInput("up starts a broker of its own: set its address with --set broker.clients=ADDRESS")
    counts = {stage: getattr(options, stage) for stage in STAGES}
    if not all(1 <= count <= 64 for count in counts.values()):
        raise InvalidInput("a stage has 1 to 64 workers")
    config = common.configuration(options)
    endpoint = connectable(config.broker.clients)
    if listening(endpoint):
        raise ConfigError(f"something listens at {endpoint} already: stop it, or set broker.clients to another address")
    model = model_directory(config, options.model)
    counts["llm"] *= len(styles_served(config, model))
    commands = shared_commands(common.config_arguments(options), config, counts, model)
    with Stack(commands, private=False, grace=STOP_GRACE) as stack:
        try:
            _serve(stack, endpoint, config.security.keys, counts)
        except (KeyboardInterrupt, Stopped):
            _stop(stack)
    return 0


def _serve(stack: Stack, endpoint: str, keys: Path | None, counts: dict[str, int]) -> None:
    from lighttts.client import Client

    with Client(endpoint, keys=keys, connect_timeout=0.5) as client:
        stack.wait_ready(client, counts)
    workers = ", ".join(f"{count} {stage}" for stage, count in counts.items())
    print(f"READY {endpoint} ({workers})", flush=True)
    while True:
        stack.check(None)


def _stop(stack: Stack) -> None:
    try:
        stack.stop()
        print("stopping; Ctrl-C again to stop at once", file=sys.stderr)
        stack.wait()
    except (KeyboardInterrupt, Stopped):
        stack.kill()
