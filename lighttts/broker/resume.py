"""Going on with a request after its client's connection, or its broker, was lost: the client says what it has heard,
the state store what was made.

The record may still belong to the lost broker, until its lease has run out; so it is asked for again for a while.
Speech is decoded again from the request's first token, without a word of what the client has heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lighttts.broker.board import Board
from lighttts.broker.dispatch import Dispatcher
from lighttts.broker.endings import MOST, Endings, refuse
from lighttts.broker.flow import Flow
from lighttts.broker.instructions import DeleteRequest, Fetch, Metric, ReleaseRequest, Reply
from lighttts.broker.outbox import Channel, Outbox
from lighttts.broker.requests import Request, State, audio_bytes
from lighttts.broker.state import Claim, Found, Saved
from lighttts.broker.voice_names import VoiceNames
from lighttts.errors import LightTTSError, Overloaded, UnknownRequest
from lighttts.transport.wire import STAGES, Convert, Encoded, Resume, Synth, Tokens, decode

FETCH_INTERVAL_S = 0.2
FETCH_LIMIT_S = 10.0
"""Seconds after which a record that cannot be had is given up: longer than any lease."""

ATTEMPTS_A_LIFE = 64
LIVES = 2**16 // ATTEMPTS_A_LIFE
"""Requests parked after which attempts are numbered as before: by then no result is on its way any more."""


@dataclass(slots=True)
class Asked:
    """A client that waits for its request to go on; `asked` is when the record was last asked for.

    One that has cancelled it waits no longer, but the record is still to come, and to go.
    """

    client: bytes
    message: Resume
    since: float
    asked: float
    cancelled: bool = False


class Resumption:
    """Takes up requests again. `wall` tells Unix time, in which records are dated."""

    def __init__(
        self, board: Board, dispatcher: Dispatcher, endings: Endings, names: VoiceNames, wall: Callable[[], float]
    ) -> None:
        self._names = names
        self._board = board
        self._step = board.step
        self._dispatcher = dispatcher
        self._endings = endings
        self._wall = wall
        self._asked: dict[str, Asked] = {}

    def ask(self, client: bytes, message: Resume, now: float) -> None:
        """A client wants to go on. If this broker still works on the request, for a lost connection, it ends that."""
        known = self._board.requests.get(message.request_id)
        if known and self._board.stranger(client, self._board.who(known.client)):
            self._unknown(client, message.request_id)
            return
        if known and known.state in (State.FAILED, State.CANCELLED):
            self._step.add(Reply(Channel.CLIENTS, client, known.farewell))
            self._endings.forget(known, now)
            return
        if known and known.in_pieces:
            self._endings.drop(known, now)
            self._unknown(client, message.request_id)
            return
        if known:
            self._endings.park(known, now)
        room = MOST * self._board.settings.max_requests - len(self._board.requests.live)
        if message.request_id not in self._asked and len(self._asked) >= room:
            text = "too many requests wait to go on: try again later"
            refuse(self._step, client, message.request_id, Overloaded(text, retry_after=FETCH_INTERVAL_S))
            return
        self._asked[message.request_id] = Asked(client, message, now, now)
        self._step.add(Fetch(message.request_id))

    def credit(self, client: bytes, request_id: str, frames: int) -> None:
        """A client that waits for its request to go on grants more."""
        asked = self._asked.get(request_id)
        if asked and asked.client == client:
            asked.message = replace(asked.message, credit=asked.message.credit + frames)

    def cancel(self, client: bytes, request_id: str) -> None:
        """A client does not wait for its request any longer."""
        asked = self._asked.get(request_id)
        if asked and asked.client == client:
            asked.cancelled = True

    def fetched(self, request_id: str, found: Found, now: float) -> None:
        """The record has come, or there is none, or it cannot be had now."""
        asked = self._asked.get(request_id)
        if asked is None and isinstance(found, Saved) and request_id not in self._board.requests:
            # Asked for twice, say, and parked in between: it is this broker's now, and its client may yet come back.
            self._step.add(ReleaseRequest(request_id))
        if asked is None or found is Claim.FOREIGN:
            return
        del self._asked[request_id]
        if not isinstance(found, Saved):
            self._refuse(asked, request_id)
            return
        if self._board.stranger(asked.client, found.client):
            self._step.add(ReleaseRequest(request_id))
            self._refuse(asked, request_id)
            return
        if asked.cancelled:
            self._step.add(DeleteRequest(request_id))
            return
        try:
            request = self._request(asked, found, now)
        except LightTTSError as error:
            self._step.add(DeleteRequest(request_id))
            refuse(self._step, asked.client, request_id, error)
            return
        self._board.prompts.hold(audio_bytes(request.asked))
        self._board.requests.add(request)
        self._step.observe(Metric.RESUMED)
        self._step.log(
            "info", "request resumed", request_id=request_id, state=request.state.value, frames=asked.message.seq
        )
        self._begin(request, now)

    def tick(self, now: float) -> None:
        """Asks again for what could not be had, and gives up on some."""
        for request_id, asked in tuple(self._asked.items()):
            if now - asked.since >= FETCH_LIMIT_S:
                del self._asked[request_id]
                self._refuse(asked, request_id)
            elif now - asked.asked >= FETCH_INTERVAL_S:
                asked.asked = now
                self._step.add(Fetch(request_id))

    def _refuse(self, asked: Asked, request_id: str) -> None:
        if not asked.cancelled:
            self._unknown(asked.client, request_id)

    def _unknown(self, client: bytes, request_id: str) -> None:
        text = "the broker knows nothing of this request: send it again"
        refuse(self._step, client, request_id, UnknownRequest(text))

    def _request(self, asked: Asked, saved: Saved, now: float) -> Request:
        """The request as it was. Raises `UnknownRequest` if the client has heard more than can be made again."""
        speech, message, settings = decode(saved.synth), asked.message, self._board.settings
        assert isinstance(speech, Synth | Convert)
        if isinstance(speech, Synth) and speech.pieces:
            raise UnknownRequest("a text in pieces is not gone on with after its connection broke: send it again")
        received = now - max(0.0, self._wall() - saved.received)
        outbox = Outbox(Channel.CLIENTS, asked.client, self._board.output, min(message.credit, settings.max_credit))
        deadline = received + (speech.deadline_ms / 1000 or settings.deadline_s)
        request = Request(message.request_id, asked.client, speech, outbox, received, deadline, State.ADMITTED)
        # Late results of the attempts before this broker parked it are none of those that follow.
        request.attempts = dict.fromkeys(STAGES, self._endings.parked % LIVES * ATTEMPTS_A_LIFE)
        request.accepted = message.accepted
        request.flow = Flow(frames=message.seq, rows=message.rows, heard=None, last_at=now, plays_until=now)
        if saved.encoded:
            self._restore(request, saved)
        if speech.output == "tokens" and len(request.log) < message.seq:
            raise UnknownRequest("the request's tokens were lost with the broker: send it again")
        return request

    def _restore(self, request: Request, saved: Saved) -> None:
        encoded = decode(saved.encoded)
        assert isinstance(encoded, Encoded)
        request.take(encoded)
        request.state = State.ENCODED
        request.drop_audio()
        for seq in range(len(saved.tokens)):
            frames = saved.tokens[seq]
            tokens = decode(frames)
            assert isinstance(tokens, Tokens)
            request.log.add(frames, len(tokens.tokens), final=tokens.final)

    def _begin(self, request: Request, now: float) -> None:
        """Puts the request where its next stage finds it."""
        if request.state is State.ADMITTED:
            self._dispatcher.accept(request)
            self._names.admit(request, now)
            return
        self._dispatcher.accept(request)
        if request.asked.output == "tokens":
            for frames in request.log.after(request.flow.frames):
                request.flow.frames += 1
                request.outbox.add(frames)
            self._step.add(request.outbox)
            if request.generated:
                request.move(State.GENERATING, now)
                self._endings.complete(request, now)
                return
        self._dispatcher.onward(request, now)
