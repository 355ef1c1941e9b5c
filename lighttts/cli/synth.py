"""`lighttts-cli synth`: text in, a file or a stream of speech out."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from lighttts.cli import speech
from lighttts.errors import InvalidInput

if TYPE_CHECKING:
    from lighttts.client import Client, Synthesis

NAME = "synth"
SUMMARY = "speak a text into a file or a pipe"
DESCRIPTION = """\
Speaks a text. If no broker is running, a private one with its workers is started for this text and ended after it.
"""
EPILOG = """\
examples:
  lighttts-cli synth "Hello there." -o hello.wav
  lighttts-cli synth --file story.txt --voice heart --speed 0.9 -o story.mp3
  lighttts-cli synth "Hello there." --prompt-wav me.wav --prompt-text "What I say in me.wav." -o me-too.flac
  lighttts-cli synth "Bonjour." --prompt-wav me.wav -o me-in-french.wav      cross-lingual: without --prompt-text
  lighttts-cli synth "Hello there." --instruct "in a whisper" -o quiet.wav
  lighttts-cli synth --file story.txt -o story.wav --broker tcp://10.0.0.2:5570,tcp://10.0.0.3:5570
  echo "Hello there." | lighttts-cli synth - -o - | ffplay -autoexit -nodisp -
  some-chatbot | lighttts-cli synth - --live -o - | ffplay -autoexit -nodisp -     speaks while it is written
  lighttts-cli synth "Hello there." --output tokens -o hello.npy
"""


class Request(TypedDict):
    """The arguments of `Client.synthesize`."""

    text: str
    voice: str | None
    prompt: bytes | None
    prompt_text: str
    instruct: str
    style: str
    seed: int | None
    speed: float
    output: Literal["audio", "mel", "tokens"]
    format: Literal["s16"]
    deadline: float | None


_MAX_TEXT_BYTES = 512 * 1024
_PIECE_BYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads it from standard input")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read what to say from a UTF-8 text file")
    parser.add_argument(
        "--live",
        action="store_true",
        help="speak standard input while it is still being written; it must go on within 30 s",
    )
    speech.add_target(parser)
    parser.add_argument(
        "--prompt-text",
        default="",
        metavar="TEXT",
        help="what is said in that recording (zero-shot); leave it out if it is in another language (cross-lingual)",
    )
    parser.add_argument("--instruct", default="", metavar="TEXT", help='how to speak, in words: "in a whisper"')
    parser.add_argument("--style", default="", metavar="NAME", help="which of the model's language models is to speak")
    speech.add_manner(parser, ("audio", "mel", "tokens"))


def run(options: argparse.Namespace) -> int:
    """Speaks; returns the exit code."""
    if (options.text is None) == (options.file is None):
        raise InvalidInput('say what to speak: a "TEXT" in quotes, - for standard input, or --file FILE')
    if options.live and options.text != "-":
        raise InvalidInput("--live speaks what comes on standard input: say - in the place of TEXT")
    if options.text not in (None, "-"):
        _decoded(options.text.encode(errors="surrogateescape"), "the text")
    return speech.speak(options, speech.check(options), lambda: _asking(options), options.style)


def _asking(options: argparse.Namespace) -> Callable[[Client, int], Synthesis]:
    request = _request(options)
    if options.live:
        # What was read cannot be read again, so nothing is retried.
        live = {**request, "text": _arriving()}
        return lambda client, _: client.synthesize(**live)  # type: ignore[arg-type]
    return lambda client, retries: client.synthesize(**request, retries=retries)


def _arriving() -> Iterator[str]:
    """Standard input in pieces as they come."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while content := os.read(sys.stdin.fileno(), _PIECE_BYTES):
            yield decoder.decode(content)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input is not UTF-8: convert it, for example with iconv") from error


def _request(options: argparse.Namespace) -> Request:
    """The arguments of `Client.synthesize`, checked before the model is waited for: a slip is told at once."""
    from lighttts.client.request import make_synth, read_audio

    request: Request = {
        "text": "" if options.live else _read_text(options),
        "voice": options.voice,
        "prompt": read_audio(options.prompt_wav, "prompt") if options.prompt_wav else None,
        "prompt_text": options.prompt_text,
        "instruct": options.instruct,
        "style": options.style,
        "seed": options.seed,
        "speed": options.speed,
        "output": options.output,
        "format": "s16",
        "deadline": None,
    }
    make_synth(**request, pieces="auto" if options.live else "")
    return request


def _read_text(options: argparse.Namespace) -> str:
    if options.file:
        try:
            with options.file.open("rb") as file:
                return _decoded(file.read(_MAX_TEXT_BYTES + 1), str(options.file))
        except OSError as error:
            raise InvalidInput(f"cannot read {options.file}: {error.strerror}") from error
    if options.text == "-":
        return _decoded(sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1), "standard input")
    return str(options.text)


def _decoded(content: bytes, source: str) -> str:
    if len(content) > _MAX_TEXT_BYTES:
        raise InvalidInput(f"{source} is longer than {_MAX_TEXT_BYTES >> 10} KiB: split it into several texts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error
    if not text.strip():
        raise InvalidInput(f"{source} is empty: give at least one word")
    return text
