"""`lighttts-cli api-keys`: makes, lists and removes the keys that HTTP clients show to lighttts-gateway."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from lighttts.cli import options as common
from lighttts.cli.status import table
from lighttts.errors import InvalidInput
from lighttts.gateway.keys import KEYS_MAX, ApiKey, new_key, read_keys, write_keys

NAME = "api-keys"
SUMMARY = "make and manage the keys of HTTP clients"
DESCRIPTION = """\
API keys decide who may use lighttts-gateway. The file of gateway.keys holds their hashes, so that it gives no key away;
a key itself is shown once, when it is made. A running gateway follows the file without a restart.

  add NAME      a new key, which is printed
  list          the keys there are
  remove NAME   refuse a key from now on
"""
EPILOG = """\
examples:
  lighttts-cli api-keys add alice --file /etc/lighttts/api-keys
  lighttts-cli api-keys add shop --requests 64 --per-minute 3000 --file /etc/lighttts/api-keys
  lighttts-cli api-keys list --config /etc/lighttts/lighttts.yaml
  lighttts-cli api-keys remove alice --file /etc/lighttts/api-keys
"""

ACTIONS = ("add", "list", "remove")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("name", nargs="?", metavar="NAME", help="what the key is called in the list and in logs")
    parser.add_argument("--file", type=Path, metavar="FILE", help="the file of keys (default: gateway.keys)")
    parser.add_argument(
        "--requests", type=int, default=16, metavar="N", help="requests that it may have at once (default: 16)"
    )
    parser.add_argument(
        "--per-minute", type=int, default=600, metavar="N", help="requests that it may begin in a minute (default: 600)"
    )


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    path = options.file or common.configuration(options).gateway.keys
    if path is None:
        raise InvalidInput("say which file of API keys: --file FILE, or gateway.keys in the configuration")
    if (options.name is None) != (options.action == "list"):
        raise InvalidInput("api-keys add and remove take a NAME, list takes none")
    if options.action == "list":
        lines = table(_rows(read_keys(path)))
    elif options.action == "add":
        lines = _add(path, options)
    else:
        lines = _remove(path, options.name)
    for line in lines:
        print(line)
    return 0


def _add(path: Path, options: argparse.Namespace) -> Iterator[str]:
    keys = read_keys(path) if path.exists() else []
    if any(key.name == options.name for key in keys):
        raise InvalidInput(f"there is a key called {options.name} already: choose another name, or remove it first")
    if len(keys) >= KEYS_MAX:
        raise InvalidInput(f"{path} holds {KEYS_MAX} keys and takes no more: remove those that nobody uses")
    key, secret = new_key(options.name, options.requests, options.per_minute)
    write_keys(path, [*keys, key])
    yield secret


def _remove(path: Path, name: str) -> Iterator[str]:
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise InvalidInput(f"no key is called {name}; there are: {known}")
    write_keys(path, left)
    yield f"{name} is refused from now on"


def _rows(keys: list[ApiKey]) -> list[tuple[str, ...]]:
    return [
        ("NAME", "REQUESTS", "PER MINUTE"),
        *((key.name, str(key.requests), str(key.per_minute)) for key in keys),
    ]
