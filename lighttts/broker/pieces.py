"""Text that comes in pieces: how it goes from the client to the encode and llm workers, and what the client is held to.

A request's text waits in the broker until an encode worker has made ids of it. That is done a little at a time, by any
worker: each time from the beginning of the sentence that is being written, with all that has come meanwhile. Ids go to
the llm worker that has the request; those of unfinished sentences are kept for one that takes over. The broker keeps
this in memory alone: when it dies, or the client's connection breaks, the request ends.
"""

from __future__ import annotations

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.live import Live, Part
from lighttts.broker.requests import CLOSED, Request
from lighttts.errors import DeadlineExceeded, ProtocolError
from lighttts.transport.wire import EncodedText, Finish, Flush, Piece, Written, encode

SILENCE_S = 30.0
"""Seconds without a word, or anything left to say, after which a client that has not finished is given up."""


class Pieces:
    """Moves the texts of requests in pieces."""

    def __init__(self, board: Board, dispatcher: Dispatcher, endings: Endings) -> None:
        self._board = board
        self._step = board.step
        self._dispatcher = dispatcher
        self._endings = endings

    def hear(self, client: bytes, message: Piece | Flush | Finish, now: float) -> None:
        """A client says more of a text. What it says of a request that has just ended is of no use any more."""
        request = self._board.requests.owned(client, message.request_id)
        if request is None or request.state in CLOSED:
            return
        try:
            if request.live is None:
                raise ProtocolError(f"{type(message).__name__} for a request whose text does not come in pieces")
            request.live.hear(message, now)
        except ProtocolError as error:
            self._endings.fail(request, error, now)
        else:
            self.move(request, now)

    def move(self, request: Request, now: float) -> None:
        """Has encoded what has come, as soon as the request's voice is."""
        live = request.live
        if live is None or request.encoded is None:
            return
        if live.due and not self._dispatcher.concerned("encode", request):
            self._dispatcher.enter("encode", request, now)
        self._speak(request, live, live.conclude(), now)

    def encoded(self, request: Request, result: EncodedText, now: float) -> None:
        """An encode worker has made ids of text. Raises `ValueError` if they make no sense."""
        if request.live is None or request.encoded is None:
            raise ValueError("no text was to be encoded")
        self._speak(request, request.live, request.live.take(result), now)
        self._tell(request, request.live)
        self.move(request, now)

    def spoken(self, request: Request, sentence: int) -> None:
        """All tokens of a sentence are made: as much more text may come."""
        if request.live:
            request.live.spoken(sentence)
            self._tell(request, request.live)

    def tick(self, now: float) -> None:
        """Ends requests whose client is silent. Where none was asked for, the deadline counts from its last word."""
        for request in tuple(self._board.requests.live.values()):
            live = request.live
            if live is None:
                continue
            last = max(live.heard, request.flow.last_at, request.flow.plays_until)
            if not request.asked.deadline_ms:
                request.deadline = max(request.deadline, last + self._board.settings.deadline_s)
            if not live.finished and live.rests and now - last >= SILENCE_S:
                text = f"nothing was written for {SILENCE_S:g} s: finish a text that has ended, begin again with more"
                self._endings.fail(request, DeadlineExceeded(text), now)

    def _speak(self, request: Request, live: Live, parts: list[Part], now: float) -> None:
        worker = request.holders.get("llm")
        if worker:
            for part in parts:
                self._dispatcher.send(worker, self._dispatcher.more_text(request, part))
        elif parts and not self._dispatcher.concerned("llm", request):
            self._dispatcher.enter("llm", request, now)

    def _tell(self, request: Request, live: Live) -> None:
        if live.limit > live.told:
            live.told = live.limit
            request.outbox.add(encode(Written(request.id, live.limit)))
            self._step.add(request.outbox)
