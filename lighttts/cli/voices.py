"""`lighttts-cli voices`: the preset voices."""

from __future__ import annotations

import argparse
import json

from lighttts.cli import options as common

NAME = "voices"
SUMMARY = "list the preset voices"
DESCRIPTION = "Lists the voices that a running broker offers; the first is the default."
EPILOG = """\
examples:
  lighttts-cli voices
  lighttts-cli voices --json --broker tcp://10.0.0.2:5570,tcp://10.0.0.3:5570
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--json", action="store_true", help='print {"voices": [...]} for programs')


def run(options: argparse.Namespace) -> int:
    """Prints the voices; returns the exit code."""
    from lighttts.client import Client

    with Client(common.running_brokers(options), keys=common.key_folder(options)) as client:
        voices = client.voices()
    if options.json:
        print(json.dumps({"voices": voices}))
    elif voices:
        print("VOICE", *(f"{name}{' (default)' if name == voices[0] else ''}" for name in voices), sep="\n")
    else:
        print("The broker has no preset voice now: give `synth` a recording with --prompt-wav.")
    return 0
