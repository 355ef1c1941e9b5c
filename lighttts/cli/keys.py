"""`lighttts-cli keys`: makes, lists, replaces and removes the keys that clients and workers connect with."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from lighttts.cli import options as common
from lighttts.cli.status import table
from lighttts.errors import ConfigError, InvalidInput
from lighttts.transport.keyfiles import LOCAL_NAME, KeyFolder, KeyPair, Role, fingerprint, new_pair

NAME = "keys"
SUMMARY = "make and manage the keys that clients and workers connect with"
DESCRIPTION = """\
Keys decide who may connect to a broker over tcp, and encrypt what passes. The broker's folder holds its own key and the
list of those it lets in; a client's or worker's folder holds its own secret key and the broker's public one. A client's
key opens nothing but the clients' address. Secret keys are never shown; hand them over as files, by a safe way (scp).

  create             a broker's folder, with a client's and a worker's key for the same machine
  add ROLE NAME      a new key for a client or worker; --out is the folder to take to its machine
  list               the keys that are let in
  rotate ROLE NAME   a new key in place of the old one, which is refused from then on (rotate broker: the broker's own)
  remove ROLE NAME   refuse a key from now on

ROLE is client or worker. A running broker follows at once, without a restart. Connections that exist stay until they
end: restart the broker to end them too. Daemons use the folder of security.keys, the client library that of keys=.
"""
EPILOG = """\
examples:
  lighttts-cli keys create --keys /etc/lighttts/keys
  lighttts-cli up --keys /etc/lighttts/keys --set broker.clients=tcp://0.0.0.0:5570
  lighttts-cli status --keys /etc/lighttts/keys
  lighttts-cli keys add client alice --keys /etc/lighttts/keys --out alice-keys
  scp -rp alice-keys alice@desk:lighttts-keys
  lighttts-cli synth "Hello." -o hello.wav --broker tcp://10.0.0.2:5570 --keys lighttts-keys     (at alice's desk)
  lighttts-cli keys rotate client alice --keys /etc/lighttts/keys --out alice-keys-2
  lighttts-cli keys remove client alice --keys /etc/lighttts/keys
"""

ACTIONS = ("create", "add", "list", "rotate", "remove")
_MEMBERS = {"client": Role.CLIENT, "worker": Role.WORKER}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("role", nargs="?", metavar="ROLE", help="client or worker (rotate: or broker)")
    parser.add_argument("name", nargs="?", metavar="NAME", help="what the key is called in the list")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where a new secret key is written")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    path = common.key_folder(options)
    if path is None:
        raise InvalidInput("say which key folder: --keys DIR, or security.keys in the configuration")
    folder = KeyFolder(path)
    match options.action, options.role:
        case "create", None:
            lines = _create(folder)
        case "list", None:
            lines = _list(folder)
        case "rotate", "broker":
            lines = _rotate_broker(folder)
        case "create" | "list" as action, _:
            raise InvalidInput(f"keys {action} takes no further words")
        case action, _:
            lines = _member(action, folder, *_who(options), options.out)
    for line in lines:
        print(line)
    return 0


def _who(options: argparse.Namespace) -> tuple[Role, str]:
    if options.role not in _MEMBERS or not options.name:
        raise InvalidInput(f"say whose key: lighttts-cli keys {options.action} client NAME, or worker NAME")
    return _MEMBERS[options.role], options.name


def _member(action: str, folder: KeyFolder, role: Role, name: str, out: Path | None) -> Iterator[str]:
    if action == "remove":
        return _remove(folder, role, name)
    if out is None:
        raise InvalidInput(f"keys {action} writes a secret key: say where, with --out FOLDER")
    return (_add if action == "add" else _rotate)(folder, role, name, KeyFolder(out))


def _create(folder: KeyFolder) -> Iterator[str]:
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise ConfigError(f"{folder.path} is not an empty folder: choose another, or see `lighttts-cli keys list`")
    folder.store(Role.BROKER, LOCAL_NAME, new_pair())
    folder.make_lists()
    for role in _MEMBERS.values():
        pair = new_pair()
        folder.allow(role, LOCAL_NAME, pair.public)
        folder.store(role, LOCAL_NAME, pair)
    yield f"{folder.path} is ready: set security.keys to it for the broker and the workers of this machine"
    yield "others need a key each: lighttts-cli keys add client NAME --out FOLDER"


def _add(folder: KeyFolder, role: Role, name: str, out: KeyFolder) -> Iterator[str]:
    if folder.allowed_file(role, name).exists():
        raise ConfigError(f"there is a {role.value} key called {name} already: choose another name, or rotate it")
    pair = new_pair()
    _hand_out(folder, role, name, pair, out, replace=False)
    folder.allow(role, name, pair.public)
    yield f"{role.value} {name} is let in from now on with the key in {out.path} ({fingerprint(pair.public)})"
    yield f"take {out.path} to its machine by a safe way, then delete it here"


def _rotate(folder: KeyFolder, role: Role, name: str, out: KeyFolder) -> Iterator[str]:
    if not folder.allowed_file(role, name).exists():
        raise ConfigError(f"no {role.value} key is called {name}: make one with `lighttts-cli keys add`")
    pair = new_pair()
    _hand_out(folder, role, name, pair, out, replace=True)
    folder.allow(role, name, pair.public, replace=True)
    yield f"{role.value} {name} is let in from now on with the key in {out.path} ({fingerprint(pair.public)}) alone"


def _hand_out(folder: KeyFolder, role: Role, name: str, pair: KeyPair, out: KeyFolder, *, replace: bool) -> None:
    """Writes what a member needs: its secret key and the broker's public one."""
    broker = folder.broker_key()
    if not out.broker_file.exists():
        out.store_broker_key(broker)
    elif out.broker_key() != broker:
        raise ConfigError(f"{out.path} holds the key of another broker: choose another folder")
    out.store(role, name, pair, replace=replace)


def _rotate_broker(folder: KeyFolder) -> Iterator[str]:
    folder.pair(Role.BROKER)
    folder.store(Role.BROKER, LOCAL_NAME, new_pair(), replace=True)
    yield f"the broker has a new key: restart it, and copy {folder.broker_file} to every client and worker,"
    yield "which cannot connect until they have it"


def _remove(folder: KeyFolder, role: Role, name: str) -> Iterator[str]:
    folder.forbid(role, name)
    yield f"{role.value} {name} is refused from now on; a connection that exists stays until it ends"


def _list(folder: KeyFolder) -> Iterator[str]:
    rows = [("ROLE", "NAME", "KEY")]
    for role in _MEMBERS.values():
        rows += [(role.value, name, _shown(folder, role, name)) for name in folder.allowed_names(role)]
    yield from table(rows)


def _shown(folder: KeyFolder, role: Role, name: str) -> str:
    """A key by the part of it that the broker's log shows too."""
    try:
        return fingerprint(folder.allowed_key(role, name))
    except ConfigError as error:
        return f"unusable: {error.text}"
