"""Registered voices in requests: the recording is put in the place of the name.

The store is asked about each use, so that what one broker has removed no other speaks with.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import Endings
from lighttts.broker.requests import Request
from lighttts.broker.voice_inquiries import Inquiries
from lighttts.broker.voice_questions import Answer, Find, Voiced
from lighttts.broker.voice_records import VoiceRecord
from lighttts.errors import LightTTSError, Overloaded, UnknownVoice
from lighttts.transport.wire import Convert, SpeechRequest


class VoiceNames:
    """Finds the voices that requests name."""

    def __init__(self, board: Board, dispatcher: Dispatcher, endings: Endings, inquiries: Inquiries) -> None:
        self._board = board
        self._dispatcher = dispatcher
        self._endings = endings
        self._inquiries = inquiries

    def admit(self, request: Request, now: float) -> None:
        """Puts an admitted request before the encode stage, with the recording of the voice it names."""
        asked = request.asked
        claimed, request.asked = asked.owner, replace(asked, owner="")
        if not asked.voice or self._board.workers.offers(asked.voice):
            self._dispatcher.enter("encode", request, now)
            return
        try:
            owner = self._board.owner(request.client, claimed)
        except LightTTSError as error:
            self._endings.fail(request, error, now)
            return
        question = Find(owner, asked.voice, recording=True)
        self._inquiries.ask(request.client, question, partial(self._found, request))

    def _found(self, request: Request, answer: Answer, now: float) -> None:
        """The voice that a request names; if there is none, an encode worker may know it, or says what it knows."""
        if self._board.requests.live.get(request.id) is not request:
            return
        if isinstance(answer, Voiced):
            (voice,) = answer.voices
            if self._board.prompts.used + voice.size > self._board.prompts.limit:
                text = "the broker holds as many recordings as it can: try again later"
                self._endings.fail(request, Overloaded(text, retry_after=self._board.pace.soon(now)), now)
                return
            self._board.prompts.hold(len(answer.recording))
            request.voice_digest = voice.digest
            request.asked = _with(request.asked, voice, answer.recording)
        elif not isinstance(answer, UnknownVoice):
            self._endings.fail(request, answer, now)
            return
        self._dispatcher.enter("encode", request, now)


def _with(asked: SpeechRequest, voice: VoiceRecord, recording: bytes) -> SpeechRequest:
    """The request as if it had come with the voice's recording; an instruction takes the place of its text."""
    if isinstance(asked, Convert):
        return replace(asked, voice="", prompt=recording)
    return replace(asked, voice="", prompt=recording, prompt_text="" if asked.instruct else voice.prompt_text)
