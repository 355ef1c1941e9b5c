"""Options that every command has, and what follows from them: the configuration and where the brokers are."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.errors import MissingDependency, Unavailable
from lighttts.transport.endpoints import DEFAULT_BROKER, either, endpoint_list, listening

if TYPE_CHECKING:
    from lighttts.config import Config


def add_common(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """Adds --broker, --keys, --config and --set; those of a command (`nested`) add to those before it."""
    group = parser.add_argument_group("which broker and configuration")
    absent = argparse.SUPPRESS if nested else None
    group.add_argument(
        "--broker",
        metavar="ADDRESS[,ADDRESS...]",
        default=absent,
        help="the broker's address, tcp://host:port or ipc:///path, or those of several on one Redis, of which any is "
        f"asked and another when that one is lost (default: as configured, or {DEFAULT_BROKER})",
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


def broker_addresses(options: argparse.Namespace) -> tuple[str, ...]:
    """Where the brokers are: --broker, or as configured. A bare install without configuration knows the default.

    Raises `ConfigError` on what is not an address.
    """
    if options.broker:
        return endpoint_list(options.broker)
    sections = ("LIGHTTTS_BROKER__", "LIGHTTTS_CONNECT__")
    if options.config or options.set or any(name.startswith(sections) for name in os.environ):
        return endpoint_list(configuration(options).brokers)
    return (DEFAULT_BROKER,)


def key_folder(options: argparse.Namespace) -> Path | None:
    """The folder of keys: --keys, or as configured. A bare install without configuration has none."""
    if options.keys:
        return Path(options.keys)
    if options.config or options.set or any(name.startswith("LIGHTTTS_SECURITY__") for name in os.environ):
        return configuration(options).security.keys
    return None


def running_brokers(options: argparse.Namespace) -> tuple[str, ...]:
    """`broker_addresses`, at one of which something listens. Raises `Unavailable` at once if nothing does."""
    addresses = broker_addresses(options)
    if not any(map(listening, addresses)):
        raise Unavailable(f"no broker answers at {either(addresses)}: start one with `lighttts-cli up`")
    return addresses


def config_arguments(options: argparse.Namespace) -> list[str]:
    """The options that hand the same configuration to a daemon, which may run in another folder."""
    arguments = ["--config", str(options.config.resolve())] if options.config else []
    for override in (*options.set, *_key_setting(options)):
        arguments += ["--set", override]
    return arguments
