"""`lighttts-cli convert`: a recording in, a file or a stream of what it says in another voice out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from lighttts.cli import speech

if TYPE_CHECKING:
    from lighttts.client import Client, Synthesis

NAME = "convert"
SUMMARY = "say what a recording says in another voice"
DESCRIPTION = """\
Says what a recording of 1 to 30 s says in another voice. If no broker is running, a private one with its workers is
started for it and ended after it.
"""
EPILOG = """\
examples:
  lighttts-cli convert me.wav --voice heart -o heart.wav
  lighttts-cli convert me.wav --prompt-wav you.wav -o you.flac
"""


class Request(TypedDict):
    """The arguments of `Client.convert`."""

    source: bytes
    voice: str | None
    prompt: bytes | None
    seed: int | None
    speed: float
    output: Literal["audio", "mel"]
    format: Literal["s16"]
    deadline: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the recording: WAV, FLAC, Ogg or MP3")
    speech.add_target(parser)
    speech.add_manner(parser, ("audio", "mel"))


def run(options: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    return speech.speak(options, speech.check(options), lambda: _asking(options))


def _asking(options: argparse.Namespace) -> Callable[[Client, int], Synthesis]:
    from lighttts.client.request import make_convert, read_audio

    request: Request = {
        "source": read_audio(options.source, "source"),
        "voice": options.voice,
        "prompt": read_audio(options.prompt_wav, "prompt") if options.prompt_wav else None,
        "seed": options.seed,
        "speed": options.speed,
        "output": options.output,
        "format": "s16",
        "deadline": None,
    }
    make_convert(**request)
    return lambda client, retries: client.convert(**request, retries=retries)
