"""Questions about voices that wait for the store: who has asked, and what is to be done with the answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lighttts.broker.board import Board
from lighttts.broker.voice_questions import Answer, AskVoices, Question
from lighttts.errors import Overloaded

QUESTIONS = 16
"""Most questions of one client that wait for the store, so that nobody fills its line."""
Then = Callable[[Answer, float], None]


class Inquiries:
    """Asks the store on behalf of clients."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[bytes, Then]] = {}

    @property
    def clients(self) -> set[bytes]:
        """Those who wait for the store's answer."""
        return {client for client, _ in self._asked.values()}

    def check(self, client: bytes) -> None:
        """Raises `Overloaded` when as many questions of this client wait as may."""
        who = self._board.who(client)
        if sum(self._board.who(other) == who for other, _ in self._asked.values()) >= QUESTIONS:
            text = f"{QUESTIONS} questions of this client about voices wait for an answer: ask again later"
            raise Overloaded(text, retry_after=1.0)

    def ask(self, client: bytes, question: Question, then: Then) -> None:
        """Asks; `then` is called with the answer."""
        number = next(self._numbers)
        self._asked[number] = (client, then)
        self._board.step.add(AskVoices(number, question))

    def answered(self, number: int, answer: Answer, now: float) -> None:
        """The store has answered."""
        _, then = self._asked.pop(number)
        then(answer, now)
