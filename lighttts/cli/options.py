"""Options that every command has, and what follows from them: the configuration and the broker's address."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.errors import MissingDependency, Unavailable
from lighttts.transport.endpoints import DEFAULT_BROKER, connectable, listening

if TYPE_CHECKING:
    from lighttts.config import Config


def add_common(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """Adds --broker, --keys, --config and --set; those of a command (`nested`) add to those before it."""
    group = parser.add_argument_group("which broker and configuration")
    absent = argparse.SUPPRESS if nested else None
    group.add_argument(
        "--broker",
        metavar="ADDRESS",
        default=absent,
        help=f"the broker's address, tcp://host:port or ipc:///path (default: the configured one, or {DEFAULT_BROKER})",
    )
    group.add_argument(
        "--keys",
        metavar="DIR",
        type=Path,
        default=absent,
        help="folder of keys for tcp, see `lighttts-cli keys --help` (default: security.keys as configured)",
    )
    group.add_argument(
        "--config", metavar="FILE", type=Path, default=absent, help="configuration file, see conf/lighttts.yaml"
    )
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="set_here" if nested else "set",
        help="override one key of the configuration: --set broker.clients=tcp://10.0.0.2:5570",
    )


def merge(options: argparse.Namespace) -> None:
    """Puts the --set of both places together."""
    options.set = [*options.set, *options.set_here]


def configuration(options: argparse.Namespace) -> Config:
    """The whole configuration. Raises `ConfigError`, or `MissingDependency` in a bare install."""
    try:
        from lighttts.config import load_config
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the configuration needs the Python package {error.name}: pip install 'lighttts[server]'"
        ) from error
    return load_config(options.config, overrides=[*options.set, *_key_setting(options)])


def _key_setting(options: argparse.Namespace) -> list[str]:
    """--keys as the configuration has it; a daemon may run in another folder."""
    return [f"security.keys={json.dumps(str(options.keys.resolve()))}"] if options.keys else []


def broker_address(options: argparse.Namespace) -> str:
    """Where the broker is: --broker, or as configured. A bare install without configuration knows the default."""
    if options.broker:
        return str(options.broker)
    if options.config or options.set or any(name.startswith("LIGHTTTS_BROKER__") for name in os.environ):
        return connectable(configuration(options).broker.clients)
    return DEFAULT_BROKER


def key_folder(options: argparse.Namespace) -> Path | None:
    """The folder of keys: --keys, or as configured. A bare install without configuration has none."""
    if options.keys:
        return Path(options.keys)
    if options.config or options.set or any(name.startswith("LIGHTTTS_SECURITY__") for name in os.environ):
        return configuration(options).security.keys
    return None


def running_broker(options: argparse.Namespace) -> str:
    """`broker_address`, where something listens. Raises `Unavailable` at once if nothing does."""
    address = broker_address(options)
    if not listening(address):
        raise Unavailable(f"no broker answers at {address}: start one with `lighttts-cli up`")
    return address


def config_arguments(options: argparse.Namespace) -> list[str]:
    """The options that hand the same configuration to a daemon, which may run in another folder."""
    arguments = ["--config", str(options.config.resolve())] if options.config else []
    for override in (*options.set, *_key_setting(options)):
        arguments += ["--set", override]
    return arguments
