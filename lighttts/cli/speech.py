"""What `synth` and `convert` have in common: where the speech goes, how it is made, and by whom."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lighttts.cli import options as common
from lighttts.cli.output import OutputFile, StandardOutput
from lighttts.cli.progress import Progress
from lighttts.cli.stack import STAGES, Stack, model_directory, private_commands, private_endpoint
from lighttts.errors import InvalidInput, NoWorker, Unavailable, WorkerFailed
from lighttts.formats import AUDIO_FORMATS, check_format, format_of, make_writer
from lighttts.transport.endpoints import listening

if TYPE_CHECKING:
    from lighttts.client import Client, Synthesis

RETRIES = 3
_FRAMES_PER_SECOND = {"mel": 50, "tokens": 25}


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the speech goes and whose it is."""
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="where to write it; - is standard output")
    parser.add_argument("--format", choices=AUDIO_FORMATS, help="instead of the one that the file's name says")
    parser.add_argument(
        "--voice", metavar="NAME", help="a preset voice or one of yours, see `lighttts-cli voices` (default: the first)"
    )
    parser.add_argument("--prompt-wav", type=Path, metavar="FILE", help="clone the voice of this recording")


def add_manner(parser: argparse.ArgumentParser, outputs: tuple[str, ...]) -> None:
    """Adds the options that say how it is made; `outputs` is what can be had."""
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed and input give the same audio")
    parser.add_argument(
        "--speed",
        type=float,
        default=1.0,
        metavar="X",
        help="0.5 to 2.0 (default: 1.0, the only one at which speech arrives while its sentence is being made)",
    )
    parser.add_argument(
        "--output", choices=outputs, default="audio", help="what is not audio is written as .npy (default: audio)"
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


def check(options: argparse.Namespace) -> str:
    """The output's format. Raises `InvalidInput` on what is wrong before anything is started."""
    if options.retries < 0:
        raise InvalidInput("--retries must be 0 or more")
    if options.model and options.broker:
        raise InvalidInput("--model is for a private stack, --broker for a running one: give one of them")
    return format_of(options.out, options.format, options.output)


def speak(
    options: argparse.Namespace, kind: str, prepare: Callable[[], Callable[[Client, int], Synthesis]], style: str = ""
) -> int:
    """Writes speech in the format `kind`; returns the exit code. `style`: the one that a private stack has to serve.

    `prepare` is called while a private stack starts, so that a slip is told at once; what it returns asks a client,
    with so many retries.
    """
    progress = Progress(began=time.monotonic(), quiet=options.quiet)
    with ExitStack() as cleanup:
        cleanup.callback(progress.clear)
        target = _target(options.out)
        cleanup.enter_context(target)
        stack = _private_stack(options, style)
        if stack:
            cleanup.enter_context(stack)
        ask = prepare()
        check_format(kind)
        try:
            # A daemon of a private stack that has ended does not come back.
            retries = 0 if stack else options.retries
            with _client(options, stack, progress) as client, ask(client, retries) as synthesis:
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


def _private_stack(options: argparse.Namespace, style: str) -> Stack | None:
    """Starts a stack for this command if no broker is to be had. A broker asked for by --broker is not replaced."""
    if options.broker or (not options.model and any(map(listening, common.broker_addresses(options)))):
        return None
    model = model_directory(common.configuration(options), options.model)
    return Stack(private_commands(common.config_arguments(options), model, style), private=True)


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
