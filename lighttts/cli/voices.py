"""`lighttts-cli voices`: the voices there are; voices of one's own added, shown, renamed, removed, taken along."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.cli import options as common
from lighttts.cli.output import OutputFile, StandardOutput
from lighttts.cli.stack import Stack, model_directory, private_commands, private_endpoint
from lighttts.errors import InvalidInput, NoWorker, ProtocolError, Unavailable, WorkerFailed
from lighttts.transport.endpoints import listening

if TYPE_CHECKING:
    from lighttts.client import Client, RegisteredVoice

NAME = "voices"
SUMMARY = "list the voices, add and manage your own"
DESCRIPTION = """\
A voice of your own is a recording of 1 to 30 s with a name: once it is added, `--voice NAME` speaks with it, at every
door. It belongs to your key and is yours alone, unless you share it.

  list                what there is (this is done if no action is given); the first is the default
  add NAME            add the recording --wav, in which --text is said
  show NAME           whose it is, since when, and what is said in it
  rename NAME NEW     call it otherwise
  remove NAME         remove it with all that is kept of it
  export NAME         write it to one file, -o FILE
  import FILE         add the voice of such a file, under its name or --name

Preset voices are the model's own: they always stay. If no broker is running, a private one is started for the command;
it keeps voices where the next one finds them (broker.voices_directory).
"""
EPILOG = """\
examples:
  lighttts-cli voices
  lighttts-cli voices add me --wav me.wav --text "What I say in it."
  lighttts-cli synth "Hello." --voice me -o hello.wav
  lighttts-cli voices add house --wav house.flac --text "Welcome." --shared --replace
  lighttts-cli voices rename me myself
  lighttts-cli voices export myself -o myself.ltv
  lighttts-cli voices import myself.ltv --name me --broker tcp://10.0.0.2:5570
  lighttts-cli voices show me --json
  lighttts-cli voices remove me
"""

ACTIONS = ("list", "add", "show", "rename", "remove", "export", "import")
_STAGE = {"encode": 1}
_OPTIONS = {
    "wav": ("--wav", "add"),
    "text": ("--text", "add"),
    "shared": ("--shared", "add and import"),
    "replace": ("--replace", "add and import"),
    "out": ("-o", "export"),
    "called": ("--name", "import"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("name", nargs="?", metavar="NAME", help="the voice (import: the FILE)")
    parser.add_argument("to", nargs="?", metavar="NEW", help="rename: its new name")
    parser.add_argument("--wav", type=Path, metavar="FILE", help="add: the recording, WAV, FLAC, Ogg or MP3, 1 to 30 s")
    parser.add_argument(
        "--text", metavar="TEXT", help="add: what is said in it (without, only its sound is taken, not its manner)"
    )
    parser.add_argument("--shared", action="store_true", help="add, import: everybody may use it")
    parser.add_argument("--replace", action="store_true", help="add, import: in the place of your voice of that name")
    parser.add_argument("-o", "--out", metavar="FILE", help="export: where to write it; - is standard output")
    parser.add_argument("--name", dest="called", metavar="NAME", help="import: instead of the name it has in the file")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    _check(options)
    act: Callable[[Client, argparse.Namespace], None] = _ACTS[options.action]
    with _connected(options) as client:
        act(client, options)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises `InvalidInput` when the words do not make a command."""
    words = {"list": 0, "rename": 2}.get(options.action, 1)
    if words != (options.name is not None) + (options.to is not None):
        takes = ("no further word", "one name", "two names")[words] if options.action != "import" else "one file"
        raise InvalidInput(f"voices {options.action} takes {takes}")
    for key, (flag, users) in _OPTIONS.items():
        if getattr(options, key) and options.action not in users.split(" and "):
            raise InvalidInput(f"{flag} goes with voices {users}, not with {options.action}")
    if options.action == "add" and not options.wav:
        raise InvalidInput("voices add needs a recording: give it with --wav FILE")
    if options.action == "export" and not options.out:
        raise InvalidInput("voices export writes a file: say which with -o FILE")


# ---- the actions -----------------------------------------------------------------------------------------------------


def _list(client: Client, options: argparse.Namespace) -> None:
    names = client.voices()
    registered = _registered(client)
    if options.json:
        print(json.dumps({"voices": names, "registered": [_plain(voice) for voice in registered]}))
    elif names:
        notes = {voice.name: _note(voice) for voice in reversed(registered)}
        default = {names[0]: " (default)"} if names[0] not in notes else {}
        print("VOICE", *(name + default.get(name, "") + notes.get(name, "") for name in names), sep="\n")
    else:
        print("The broker has no preset voice now: give `synth` a recording with --prompt-wav.")


def _registered(client: Client) -> tuple[RegisteredVoice, ...]:
    try:
        return client.registered_voices()
    except ProtocolError:
        # An older broker has none.
        return ()


def _add(client: Client, options: argparse.Namespace) -> None:
    how = {"shared": options.shared, "replace": options.replace}
    _tell(client.add_voice(options.name, options.wav, options.text or "", **how), options, "added")


def _import(client: Client, options: argparse.Namespace) -> None:
    how = {"shared": options.shared, "replace": options.replace}
    _tell(client.import_voice(options.name, options.called, **how), options, "added")


def _show(client: Client, options: argparse.Namespace) -> None:
    _tell(client.show_voice(options.name), options, "")


def _rename(client: Client, options: argparse.Namespace) -> None:
    _tell(client.rename_voice(options.name, options.to), options, "renamed")


def _remove(client: Client, options: argparse.Namespace) -> None:
    _tell(client.remove_voice(options.name), options, "removed")


def _export(client: Client, options: argparse.Namespace) -> None:
    content = client.export_voice(options.name)
    with StandardOutput() if options.out == "-" else OutputFile(Path(options.out)) as target:
        try:
            target.file.write(content)
            target.commit()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InvalidInput(f"cannot write {options.out}: {error.strerror}; choose another file") from error


_ACTS = {
    "list": _list,
    "add": _add,
    "show": _show,
    "rename": _rename,
    "remove": _remove,
    "export": _export,
    "import": _import,
}


# ---- what is printed -------------------------------------------------------------------------------------------------


def _tell(voice: RegisteredVoice, options: argparse.Namespace, done: str) -> None:
    if options.json:
        print(json.dumps(_plain(voice)))
    elif done:
        print(f"{voice.name} {done}")
    else:
        lines = {
            "name": voice.name,
            "owner": voice.owner or "everybody: no keys are used",
            "shared": "yes" if voice.shared else "no",
            "added": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(voice.created)),
            "recording": f"{voice.size} bytes, SHA-256 {voice.digest}",
            "text": voice.text or "none",
        }
        for name, value in lines.items():
            print(f"{name:<10} {value}")


def _plain(voice: RegisteredVoice) -> dict[str, object]:
    return voice._asdict()


def _note(voice: RegisteredVoice) -> str:
    if not voice.shared:
        return " (registered)"
    return f" (registered, shared by {voice.owner})" if voice.owner else " (registered, shared)"


# ---- whom to ask -----------------------------------------------------------------------------------------------------


@contextmanager
def _connected(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the running broker, or of a private one. A broker asked for by --broker is not replaced."""
    from lighttts.client import Client

    if options.broker or any(map(listening, common.broker_addresses(options))):
        with Client(common.running_brokers(options), keys=common.key_folder(options)) as client:
            yield client
        return
    model = model_directory(common.configuration(options), None)
    with Stack(private_commands(common.config_arguments(options), model, stages=tuple(_STAGE)), private=True) as stack:
        if sys.stderr.isatty():
            print("no broker is running: starting a private one ...", file=sys.stderr)
        try:
            with Client(private_endpoint(stack), connect_timeout=0.5) as client:
                stack.wait_ready(client, _STAGE)
                yield client
        except (Unavailable, NoWorker, WorkerFailed):
            # A daemon that has ended is why.
            stack.check(1.0)
            raise
