"""`lighttts-cli doctor`: what is missing or misconfigured, in words, with what mends it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.cli import checks
from lighttts.cli import options as common
from lighttts.cli.access import access
from lighttts.cli.checks import Finding, Level
from lighttts.cli.stack import model_directory
from lighttts.errors import LightTTSError
from lighttts.transport.endpoints import DEFAULT_BROKER, connectable, endpoint_list, listening

if TYPE_CHECKING:
    from lighttts.config import Config

NAME = "doctor"
SUMMARY = "say what is missing or misconfigured, and what mends it"
DESCRIPTION = """\
Looks at Python and packages, configuration, model directory, device, Redis, keys, API keys, the gateway's certificate,
addresses, and running brokers with their workers. Exit code 0 only if all is well.
"""
EPILOG = """\
examples:
  lighttts-cli doctor
  lighttts-cli doctor --config /etc/lighttts/lighttts.yaml
  lighttts-cli doctor --model pretrained_models/CosyVoice2-0.5B
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model directory (default: as configured)")


def run(options: argparse.Namespace) -> int:
    """Prints the findings; returns 0 if there is no problem, else 1."""
    problems = 0
    for finding in findings(options):
        problems += finding.level is Level.PROBLEM
        print(f"{finding.level.value:8} {finding.text}", flush=True)
    print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "all is well")
    return 1 if problems else 0


def findings(options: argparse.Namespace) -> Iterator[Finding]:
    """All findings, in the order in which they should be mended."""
    yield from checks.python()
    package_findings = [*checks.packages()]
    yield from package_findings
    try:
        config = common.configuration(options)
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)
        yield from _brokers(options.broker or DEFAULT_BROKER, options.keys, asked=bool(options.broker))
        return
    yield Finding(Level.OK, f"configuration: {options.config or 'defaults and environment'}")
    yield from checks.files(config)
    yield from checks.redis(config)
    yield from access(config)
    yield from checks.api_keys(config)
    yield from checks.certificate(config)
    if not any(finding.level is Level.PROBLEM for finding in package_findings):
        yield from checks.device(config)
        yield from _model(options, config)
    if not options.broker and not listening(connectable(config.broker.clients)):
        yield from checks.ports(config)
    asked = bool(options.broker or config.connect.clients)
    yield from _brokers(options.broker or config.brokers, config.security.keys, asked=asked)


def _model(options: argparse.Namespace, config: Config) -> Iterator[Finding]:
    try:
        yield from checks.model(model_directory(config, options.model))
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)


def _brokers(addresses: str | Sequence[str], keys: Path | None, *, asked: bool) -> Iterator[Finding]:
    """Each broker. None is a problem only where one was named: `synth` starts its own."""
    try:
        endpoints = endpoint_list(addresses)
    except LightTTSError as error:
        yield Finding(Level.PROBLEM, error.text)
        return
    for address in endpoints:
        if asked or listening(address):
            yield from checks.broker(address, keys, alone=len(endpoints) == 1)
        else:
            text = f"no broker runs at {address}: `lighttts-cli up` starts one, `synth` one for itself"
            yield Finding(Level.NOTE, text)
