"""What `doctor` looks at for who may connect: the key folder, and addresses that stand open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lighttts.cli.checks import Finding, Level
from lighttts.errors import ConfigError
from lighttts.transport.endpoints import is_loopback
from lighttts.transport.keyfiles import KeyFolder, Role

if TYPE_CHECKING:
    from lighttts.config import Config


def access(config: Config) -> Iterator[Finding]:
    """Whether those who should can connect, and nobody else."""
    if config.security.keys:
        yield from keys(KeyFolder(config.security.keys))
    else:
        yield from open_addresses(config)


def open_addresses(config: Config) -> Iterator[Finding]:
    """The addresses that other machines reach, without keys."""
    wanted = {f"broker.{name}": getattr(config.broker, name) for name in ("clients", "workers", "results")}
    reached = [
        f"{key} ({endpoint})"
        for key, endpoint in wanted.items()
        if endpoint.startswith("tcp://") and not is_loopback(endpoint)
    ]
    if not reached:
        yield Finding(Level.OK, "no keys: only this machine reaches the broker")
        return
    text = f"anybody in the network can use {', '.join(reached)} and read what passes"
    mend = "make keys with `lighttts-cli keys create` and set security.keys"
    if config.security.allow_plain:
        yield Finding(Level.NOTE, f"{text}, as security.allow_plain says; to end that, {mend}")
    else:
        yield Finding(Level.PROBLEM, f"{text}, so the broker will not start: {mend}")


def keys(folder: KeyFolder) -> Iterator[Finding]:
    """Every key of the folder, and for a broker's the list of those it lets in."""
    problems = [*_problems(folder)]
    for problem in problems:
        yield Finding(Level.PROBLEM, problem)
    if not problems:
        yield Finding(Level.OK, f"keys in {folder.path}: {', '.join(_found(folder))}")


def _problems(folder: KeyFolder) -> Iterator[str]:
    try:
        folder.broker_key()
    except ConfigError as error:
        yield error.text
    secrets = [role for role in Role if folder.secret_file(role).exists()]
    if not secrets:
        yield f"there is no secret key in {folder.path}: see `lighttts-cli keys --help`"
    for role in secrets:
        try:
            folder.pair(role)
        except ConfigError as error:
            yield error.text
    if Role.BROKER in secrets:
        yield from _problems_of_lists(folder)


def _problems_of_lists(folder: KeyFolder) -> Iterator[str]:
    for role in (Role.CLIENT, Role.WORKER):
        allowed = []
        try:
            for name in folder.allowed_names(role):
                allowed.append(folder.allowed_key(role, name))
            if folder.secret_file(role).exists() and folder.pair(role).public not in allowed:
                yield f"the broker does not let in {folder.secret_file(role)}: replace it (keys add {role.value} NAME)"
        except ConfigError as error:
            yield error.text


def _found(folder: KeyFolder) -> Iterator[str]:
    for role in Role:
        if folder.secret_file(role).exists():
            yield f"{role.value}'s own"
    if folder.secret_file(Role.BROKER).exists():
        for role in (Role.CLIENT, Role.WORKER):
            yield f"{len(folder.allowed_names(role))} {role.value}s allowed"
