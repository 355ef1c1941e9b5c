"""Registered voices as clients see them: added, shown, listed, renamed, removed.

A recording that is to be added is checked by an encode worker first: an errand, a request of the broker's own
(`Request.told`).
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from functools import partial

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.instructions import Metric, Reply
from lighttts.broker.outbox import Channel, Outbox
from lighttts.broker.quota import Quotas
from lighttts.broker.requests import Request, State
from lighttts.broker.voice_inquiries import Inquiries
from lighttts.broker.voice_questions import Answer, Find, ListAll, Put, Question, Remove, Rename, Voiced
from lighttts.broker.voice_records import VoiceRecord, digest_of
from lighttts.broker.voice_traces import Traces
from lighttts.errors import Forbidden, InvalidInput, LightTTSError, Overloaded, Unavailable, UnknownVoice, VoiceExists
from lighttts.transport.wire import (
    MAX_VOICES,
    AddVoice,
    ListVoices,
    Message,
    Synth,
    VoiceAction,
    VoiceDone,
    VoiceFailed,
    VoiceList,
    Voices,
    encode,
)
from lighttts.voice_file import check_name, check_text

EXPORTS_A_MINUTE = 60
"""Of one client: each may be as large as a recording, and is sent without credit."""


class VoiceDesk:
    """Handles what clients ask about voices. `wall` tells Unix time."""

    def __init__(
        self,
        board: Board,
        dispatcher: Dispatcher,
        inquiries: Inquiries,
        traces: Traces,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._step = board.step
        self._dispatcher = dispatcher
        self._inquiries = inquiries
        self._traces = traces
        self._wall = wall
        self._exports = Quotas(sys.maxsize, EXPORTS_A_MINUTE, board.who)

    # ---- what clients ask ----------------------------------------------------------------------------------------

    def add(self, client: bytes, message: AddVoice, now: float) -> None:
        """A voice is to be added: checked here, then by an encode worker, then stored."""
        try:
            owner = self._board.owner(client, message.owner)
            self._check_new(client, message, now)
        except LightTTSError as error:
            self._fail(client, message.query_id, error)
            return
        self._board.quotas.charge(client, now)
        recording = Synth(
            request_id=f"voice-{secrets.token_hex(16)}",
            text="",
            voice="",
            prompt_text=message.prompt_text,
            seed=0,
            speed=1.0,
            output="audio",
            sample_type="f32",
            deadline_ms=0,
            credit=0,
            prompt=message.prompt,
        )
        outbox = Outbox(Channel.CLIENTS, client, self._board.output)
        deadline = now + self._board.settings.deadline_s
        request = Request(recording.request_id, client, recording, outbox, received=now, deadline=deadline)
        request.told = partial(self._checked, client, owner, message)
        self._board.prompts.hold(len(message.prompt))
        self._board.requests.add(request)
        self._step.observe(Metric.REQUESTS, label=request.method)
        request.move(State.ADMITTED, now)
        self._dispatcher.enter("encode", request, now)

    def act(self, client: bytes, message: VoiceAction, now: float) -> None:
        """Something is to be done with a voice."""
        try:
            owner = self._board.owner(client, message.owner)
            question = self._question(owner, message)
            self._check_pace(client, message, now)
        except LightTTSError as error:
            self._fail(client, message.query_id, error)
            return
        self._inquiries.ask(client, question, partial(self._acted, client, message))

    def list(self, client: bytes, message: ListVoices, now: float) -> None:
        """The names of all voices are asked for. If the registered ones cannot be had, preset ones can."""
        try:
            owner = self._board.owner(client, message.owner)
        except Forbidden:
            owner = ""
        try:
            self._inquiries.check(client)
        except Overloaded as error:
            self._listed(client, message, error, now)
            return
        self._inquiries.ask(client, ListAll(owner), partial(self._listed, client, message))

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._exports.tick(now)

    # ---- checks --------------------------------------------------------------------------------------------------

    def _check_new(self, client: bytes, message: AddVoice, now: float) -> None:
        board = self._board
        check_name(message.name)
        check_text(message.prompt_text)
        self._check_preset(message.name, "name")
        if not message.prompt:
            raise InvalidInput("the recording is empty: give the audio file of a voice", field="prompt")
        if board.stopping:
            raise Unavailable("the broker is shutting down: try again when it is back", retry_after=1.0)
        board.quotas.check(client, board.requests, board.pace, now)
        full = len(board.requests.live) >= board.settings.max_requests
        if full or board.prompts.used + len(message.prompt) > board.prompts.limit:
            raise Overloaded("the broker takes no more requests now: try again later", retry_after=board.pace.soon(now))

    def _check_preset(self, name: str, field: str) -> None:
        if self._board.workers.offers(name):
            raise VoiceExists(f"{name!r} is a preset voice of the model, which always stays", field=field)

    def _check_pace(self, client: bytes, message: VoiceAction, now: float) -> None:
        self._inquiries.check(client)
        if message.action == "export":
            self._exports.check(client, self._board.requests, self._board.pace, now)
            self._exports.charge(client, now)

    def _question(self, owner: str, message: VoiceAction) -> Question:
        if message.action == "list":
            return ListAll(owner)
        check_name(message.name)
        if message.action in ("rename", "remove"):
            self._check_preset(message.name, "name")
        if message.action == "rename":
            check_name(message.to, "to")
            self._check_preset(message.to, "to")
            return Rename(owner, message.name, message.to)
        if message.action == "remove":
            return Remove(owner, message.name)
        return Find(owner, message.name, recording=message.action == "export")

    # ---- what came of it -----------------------------------------------------------------------------------------

    def _checked(self, client: bytes, owner: str, message: AddVoice, outcome: str | LightTTSError, now: float) -> None:
        """The encode stage has said what the features of a new voice are called, or what is wrong with it."""
        if isinstance(outcome, LightTTSError):
            self._fail(client, message.query_id, outcome)
            return
        digest = digest_of(message.prompt)
        self._traces.learn(digest, outcome)
        voice = VoiceRecord(
            owner,
            message.name,
            message.prompt_text,
            message.shared,
            self._wall(),
            len(message.prompt),
            digest,
            outcome,
        )
        # As long as it waits to be written it is in memory.
        self._board.prompts.hold(len(message.prompt))
        self._inquiries.ask(client, Put(voice, message.prompt, message.replace), partial(self._added, client, message))

    def _added(self, client: bytes, message: AddVoice, answer: Answer, now: float) -> None:
        self._board.prompts.free(len(message.prompt))
        if not isinstance(answer, Voiced):
            self._fail(client, message.query_id, answer)
            return
        new, *old = answer.voices
        self._traces.added(new.digest)
        for voice in old:
            if voice.digest != new.digest:
                self._traces.removed(voice, now)
        self._step.log("info", "voice added", voice=new.name, owner=new.owner, shared=new.shared, bytes=new.size)
        self._done(client, message.query_id, new)

    def _acted(self, client: bytes, message: VoiceAction, answer: Answer, now: float) -> None:
        if not isinstance(answer, Voiced):
            self._fail(client, message.query_id, self._preset_or(message, answer))
            return
        if message.action == "list":
            rows = tuple(voice.row for voice in answer.voices)
            self._answer(client, VoiceList(message.query_id, rows))
            return
        (voice,) = answer.voices
        if message.action == "remove":
            self._traces.removed(voice, now)
        if message.action in ("rename", "remove"):
            self._step.log("info", f"voice {message.action}d", voice=message.name, owner=voice.owner)
        self._done(client, message.query_id, voice, answer.recording)

    def _preset_or(self, message: VoiceAction, error: LightTTSError) -> LightTTSError:
        if isinstance(error, UnknownVoice) and self._board.workers.offers(message.name):
            return UnknownVoice(f"{message.name!r} is a preset voice of the model, not a registered one", field="name")
        return error

    def _listed(self, client: bytes, message: ListVoices, answer: Answer, now: float) -> None:
        names = dict.fromkeys(self._board.workers.voices())
        if isinstance(answer, Voiced):
            names |= dict.fromkeys(voice.name for voice in answer.voices)
        rate = self._board.workers.sample_rate
        self._answer(client, Voices(message.query_id, rate, tuple(names)[:MAX_VOICES]))

    # ---- answers -------------------------------------------------------------------------------------------------

    def _done(self, client: bytes, query_id: int, voice: VoiceRecord, recording: bytes = b"") -> None:
        self._answer(client, VoiceDone(query_id, voice.row, voice.prompt_text, recording))

    def _fail(self, client: bytes, query_id: int, error: LightTTSError) -> None:
        wait = min(2**32 - 1, round(1000 * (error.retry_after or 0)))
        failed = VoiceFailed(query_id, error.code, _line(error.text), error.field, error.retryable, wait)
        self._answer(client, failed)

    def _answer(self, client: bytes, message: Message) -> None:
        self._step.add(Reply(Channel.CLIENTS, client, encode(message)))


def _line(text: str) -> str:
    return text.encode(errors="replace")[:4000].decode(errors="ignore")
