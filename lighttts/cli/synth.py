"""`lighttts-cli synth`: text in, a file or a stream of speech out."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from lighttts.cli import options as common
from lighttts.cli.output import OutputFile, StandardOutput
from lighttts.cli.progress import Progress
from lighttts.cli.stack import STAGES, Stack, model_directory, private_commands, private_endpoint
from lighttts.errors import InvalidInput, NoWorker, Unavailable, WorkerFailed
from lighttts.formats import AUDIO_FORMATS, check_format, format_of, make_writer
from lighttts.transport.endpoints import listening

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
  lighttts-cli synth --file story.txt -o story.wav --broker tcp://10.0.0.2:5570,tcp://10.0.0.3:5570
  echo "Hello there." | lighttts-cli synth - -o - | ffplay -autoexit -nodisp -
  lighttts-cli synth "Hello there." --output tokens -o hello.npy
"""


class Request(TypedDict):
    """The arguments of `Client.synthesize`."""

    text: str
    voice: str | None
    prompt: bytes | None
    prompt_text: str
    seed: int | None
    speed: float
    output: Literal["audio", "mel", "tokens"]
    format: Literal["s16"]
    deadline: float | None


RETRIES = 3
_MAX_TEXT_BYTES = 512 * 1024
_FRAMES_PER_SECOND = {"mel": 50, "tokens": 25}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads it from standard input")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read what to say from a UTF-8 text file")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="where to write it; - is standard output")
    parser.add_argument("--format", choices=AUDIO_FORMATS, help="instead of the one that the file's name says")
    parser.add_argument(
        "--voice", metavar="NAME", help="a preset voice, see `lighttts-cli voices` (default: the first)"
    )
    parser.add_argument("--prompt-wav", type=Path, metavar="FILE", help="clone the voice of this recording")
    parser.add_argument("--prompt-text", default="", metavar="TEXT", help="what is said in that recording")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed and text give the same audio")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="0.5 to 2.0 (default: 1.0)")
    parser.add_argument(
        "--output", choices=("audio", "mel", "tokens"), default="audio", help="mel and tokens are written as .npy"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="speak with a private stack that serves this model")
    parser.add_argument(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help=f"try again so often if it fails before the first audio and may succeed later (default: {RETRIES})",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on the terminal")


def run(options: argparse.Namespace) -> int:
    """Speaks; returns the exit code."""
    progress = Progress(began=time.monotonic(), quiet=options.quiet)
    kind = _check(options)
    with ExitStack() as cleanup:
        cleanup.callback(progress.clear)
        target = _target(options.out)
        cleanup.enter_context(target)
        stack = _private_stack(options)
        if stack:
            cleanup.enter_context(stack)
        request = _request(options)
        check_format(kind)
        try:
            # A daemon of a private stack that has ended does not come back.
            retries = 0 if stack else options.retries
            with (
                _client(options, stack, progress) as client,
                client.synthesize(**request, retries=retries) as synthesis,
            ):
                progress.asked = time.monotonic()
                _write(synthesis, kind, target, options, progress)
        except (Unavailable, NoWorker, WorkerFailed):
            if stack:
                # A daemon that has ended is why.
                stack.check(1.0)
            raise
        try:
            target.commit()
        except OSError as error:
            raise _unwritable(options, error) from error
        progress.finish(f"{options.out}: {progress.line()}, seed {synthesis.seed}")
    return 0


def _target(out: str) -> OutputFile | StandardOutput:
    return StandardOutput() if out == "-" else OutputFile(Path(out))


def _check(options: argparse.Namespace) -> str:
    """The output's format. Raises `InvalidInput` on what is wrong before anything is started."""
    if (options.text is None) == (options.file is None):
        raise InvalidInput('say what to speak: a "TEXT" in quotes, - for standard input, or --file FILE')
    if options.text not in (None, "-"):
        _decoded(options.text.encode(errors="surrogateescape"), "the text")
    if options.retries < 0:
        raise InvalidInput("--retries must be 0 or more")
    if options.model and options.broker:
        raise InvalidInput("--model is for a private stack, --broker for a running one: give one of them")
    return format_of(options.out, options.format, options.output)


def _private_stack(options: argparse.Namespace) -> Stack | None:
    """Starts a stack for this command if no broker is to be had. A broker asked for by --broker is not replaced."""
    if options.broker or (not options.model and any(map(listening, common.broker_addresses(options)))):
        return None
    model = model_directory(common.configuration(options), options.model)
    return Stack(private_commands(common.config_arguments(options), model), private=True)


def _request(options: argparse.Namespace) -> Request:
    """The arguments of `Client.synthesize`, checked before the model is waited for: a slip is told at once."""
    from lighttts.client.request import make_synth, read_prompt

    request: Request = {
        "text": _read_text(options),
        "voice": options.voice,
        "prompt": read_prompt(options.prompt_wav) if options.prompt_wav else None,
        "prompt_text": options.prompt_text,
        "seed": options.seed,
        "speed": options.speed,
        "output": options.output,
        "format": "s16",
        "deadline": None,
    }
    make_synth(**request)
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


def _client(options: argparse.Namespace, stack: Stack | None, progress: Progress) -> Client:
    from lighttts.client import Client

    if stack is None:
        return Client(common.running_brokers(options), keys=common.key_folder(options))
    client = Client(private_endpoint(stack), connect_timeout=0.5)
    progress.say("starting the model ...")
    stack.wait_ready(client, dict.fromkeys(STAGES, 1))
    return client


def _write(
    synthesis: Synthesis,
    kind: str,
    target: OutputFile | StandardOutput,
    options: argparse.Namespace,
    progress: Progress,
) -> None:
    rate = synthesis.sample_rate
    per_second = _FRAMES_PER_SECOND.get(options.output, rate)
    try:
        writer = make_writer(kind, target.file, rate)
        for chunk in synthesis:
            progress.arrived(len(chunk) / per_second, synthesis.tokens)
            writer.write(chunk)
        progress.tokens = synthesis.tokens
        writer.close()
    except OSError as error:
        raise _unwritable(options, error) from error


def _unwritable(options: argparse.Namespace, error: OSError) -> Exception:
    """A closed pipe stays what it is; anything else is told in a sentence."""
    if isinstance(error, BrokenPipeError):
        return error
    return InvalidInput(f"cannot write {options.out}: {error.strerror}; choose another output file")
