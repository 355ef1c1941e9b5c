"""Whether a new request may enter."""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.requests import audio_bytes
from lighttts.errors import InvalidInput, Overloaded, Unavailable
from lighttts.transport.wire import Convert, SpeechRequest, Synth

RETRY_AFTER_S = 1.0


def admit(client: bytes, asked: SpeechRequest, board: Board, now: float) -> None:
    """Lets `asked` in, which counts for its client's quota.

    Raises `InvalidInput`, `Unavailable` or `Overloaded` when it cannot be taken now.
    """
    check_input(asked, board.settings.max_text)
    live = board.requests.live
    if asked.request_id in board.requests:
        raise InvalidInput(
            f"request id {asked.request_id} is taken: every request needs an id of its own", field="request_id"
        )
    if board.stopping:
        raise Unavailable("the broker is shutting down: try again when it is back", retry_after=RETRY_AFTER_S)
    _check_style(asked, board, now)
    board.quotas.check(client, board.requests, board.pace, now)
    if len(live) >= board.settings.max_requests or board.prompts.used + audio_bytes(asked) > board.prompts.limit:
        text = f"the broker has {len(live)} requests and takes no more now: try again later"
        raise Overloaded(text, retry_after=board.pace.soon(now))
    board.quotas.charge(client, now)


def _check_style(asked: SpeechRequest, board: Board, now: float) -> None:
    """Raises `InvalidInput` for a style that nobody has; one whose workers have yet to come is waited for."""
    known = ("", *board.workers.styles)
    if isinstance(asked, Convert) or asked.style in known or now - board.started < board.settings.no_worker_s:
        return
    have = f"the styles here are {', '.join(known[1:])}" if known[1:] else "this model has no styles"
    raise InvalidInput(f"there is no style {asked.style!r}: {have}", field="style")


def check_input(asked: SpeechRequest, max_text: int) -> None:
    """Raises `InvalidInput` when the fields of `asked` do not make a request; `max_text` is in characters."""
    if asked.voice and asked.prompt:
        raise InvalidInput("give either a voice or a prompt, not both", field="voice")
    if not asked.voice and not asked.prompt:
        raise InvalidInput("give a voice's name or a prompt's audio", field="voice")
    if isinstance(asked, Convert):
        if not asked.source:
            raise InvalidInput("the source is empty: give the audio file to convert", field="source")
    else:
        _check_text(asked, max_text)


def _check_text(synth: Synth, max_text: int) -> None:
    if synth.pieces and synth.text:
        raise InvalidInput("a text that comes in pieces begins with the first of them: leave text empty", field="text")
    if not synth.pieces and not synth.text.strip():
        raise InvalidInput("the text is empty: give at least one word", field="text")
    for name, text in (("text", synth.text), ("prompt_text", synth.prompt_text)):
        if len(text) > max_text:
            raise InvalidInput(
                f"{name} has {len(text)} characters, the limit is {max_text}: split it into several requests",
                field=name,
            )
    if synth.instruct and synth.prompt_text:
        raise InvalidInput("give an instruct or a prompt_text, not both", field="instruct")
    if synth.prompt_text and not synth.prompt:
        raise InvalidInput("prompt_text says what is spoken in a prompt: give the prompt too", field="prompt_text")
