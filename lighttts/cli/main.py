"""`lighttts-cli`: the parser, and what all commands share: errors as one sentence, signals, exit codes."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from lighttts import __version__
from lighttts.cli import api_keys, bench, convert, doctor, keys, options, status, synth, up, voices
from lighttts.cli.signals import Stopped, raise_stop_signals
from lighttts.errors import LightTTSError

USAGE_EXIT = 64
"""EX_USAGE of sysexits.h: the command line itself is wrong."""

EPILOG = """\
examples:
  lighttts-cli synth "Hello there." -o hello.wav        speak into a file
  echo "Hello there." | lighttts-cli synth - -o - | ffplay -autoexit -nodisp -
  lighttts-cli convert me.wav --voice heart -o heart.wav   say it in another voice
  lighttts-cli up                                       run broker and workers until Ctrl-C
  lighttts-cli doctor                                   what is missing, and how to mend it

`lighttts-cli COMMAND --help` tells the rest. Exit codes: 0 done, 64 wrong command line, 65 wrong input, 69 service or
package missing, 70 failure inside, 73 no room for more voices, 75 try again later, 77 not let in by the broker or not
yours to change, 78 wrong configuration or model, 130 interrupted.
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_EXIT, f"{self.prog}: {message}; `{self.prog} --help` shows what there is\n")


def build_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = Parser(
        prog="lighttts-cli",
        description="Text to speech with LightTTS.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lighttts {__version__}")
    options.add_common(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (synth, convert, up, voices, status, bench, keys, api_keys, doctor):
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        options.add_common(command, nested=True)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser, dict(commands.choices)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; exits with a sentence that names the nearest option when one is unknown."""
    parser, commands = build_parser()
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[parsed.command]
        near = difflib.get_close_matches(unknown[0], [*command._option_string_actions], n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        command.error(f"unknown option or argument {unknown[0]!r}{hint}")
    options.merge(parsed)
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parsed = parse(argv)
    raise_stop_signals()
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except LightTTSError as error:
        print(f"lighttts-cli {parsed.command}: {error.text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        return stopped.exit_code
    except BrokenPipeError:
        # Whoever read our output has closed it; the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
