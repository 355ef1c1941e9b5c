"""What workers and clients do around a core, as a model: each checks what it is sent, and works like the real one.

The speech of a request is a function of its id and its sentences, so that whoever goes on with it, and whoever hears
it, can tell every token and every sample from any other.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar
from zlib import crc32

import numpy as np

from lighttts.transport import wire
from lighttts.transport.wire import Message
from tests.broker.harness import encoded, source

T = TypeVar("T")


class Pick(Protocol):
    """Draws one of several things."""

    def __call__(self, choices: Sequence[T], /) -> T: ...


ROWS_A_TOKEN = {"audio": 4, "mel": 2}
SPEECH_IDS = 6561
FILL = -1
PATIENCE_S = 10.0
"""Seconds that a broker must keep what a client without a connection has asked for."""


def speech_tokens(request_id: str, sentence: int, length: int) -> list[int]:
    """The tokens of a sentence."""
    start = crc32(f"{request_id}/{sentence}".encode())
    return [(start + 7 * index) % SPEECH_IDS for index in range(length)]


def speech_rows(request_id: str, output: str, lengths: tuple[int, ...]) -> list[float]:
    """What a client hears of a whole request: tokens, or a value for each sample or mel frame."""
    tokens = [speech_tokens(request_id, sentence, length) for sentence, length in enumerate(lengths)]
    flat = [float(token) for sentence in tokens for token in sentence]
    rows = ROWS_A_TOKEN.get(output, 1)
    return [token + index / 8 for token in flat for index in range(rows)] if rows > 1 else flat


@dataclass
class Speech:
    """One request at a worker: where it is, and, at a decode worker, the tokens that have come."""

    work: wire.StageWork
    lengths: tuple[int, ...]
    sentence: int = 0
    done: int = 0
    """Tokens of the sentence that are made, or its rows that are sent or skipped."""
    seq: int = 0
    rows: int = 0
    tokens_seq: int = 0
    received: list[list[int]] = field(default_factory=list)
    finals: set[int] = field(default_factory=set)
    written: dict[int, int] = field(default_factory=dict)
    """Of a text in pieces, how many ids of each sentence have come; `finals` has those that are whole."""

    def __post_init__(self) -> None:
        self.received = [[] for _ in self.lengths]
        work = self.work
        if isinstance(work, wire.GenerateWork):
            made = [token for token in work.done_tokens.tolist() if token != FILL]
            self.sentence, self.seq, self.done = work.sentence, work.seq, len(made)
            assert work.lengths == (() if work.pieces else self.lengths)
            assert made == self.tokens(work.sentence)[: self.done], "not the tokens that were made"
        elif isinstance(work, wire.DecodeWork):
            self.sentence, self.seq, self.done = work.sentence, work.seq, work.skip
            self.rows, self.tokens_seq = work.first_row + work.skip, work.tokens_seq
            assert work.tokens == sum(self.lengths[: work.sentence])
            assert work.first_row == work.tokens * ROWS_A_TOKEN[work.output]

    @property
    def begun(self) -> bool:
        """Whether something of it is made."""
        return self.seq > 0

    def tokens(self, sentence: int) -> list[int]:
        """The tokens of a sentence as they should be."""
        return speech_tokens(self.work.request_id, sentence, self.lengths[sentence])

    def receive(self, message: wire.Tokens) -> None:
        """A decode worker is given more tokens."""
        assert (message.attempt, message.seq) == (self.work.attempt, self.tokens_seq), "tokens lost or repeated"
        assert message.sentence >= self.sentence
        self.tokens_seq += 1
        self.received[message.sentence] += message.tokens.tolist()
        whole = self.tokens(message.sentence)
        assert self.received[message.sentence] == whole[: len(self.received[message.sentence])]
        if message.final:
            self.finals.add(message.sentence)

    def write(self, message: wire.MoreText) -> None:
        """An llm worker is given more of a text in pieces."""
        number, before = message.sentence, self.written.get(message.sentence, 0)
        assert message.attempt == self.work.attempt
        assert number >= self.sentence, "a sentence that is spoken already"
        assert number not in self.finals, "more of a sentence that is whole"
        assert message.text_ids.tolist() == [*range(before, before + len(message.text_ids))], "ids lost or repeated"
        self.written[number] = before + len(message.text_ids)
        if message.final:
            self.finals.add(number)
            assert self.written[number] == self.lengths[number]
            assert message.last is (number == len(self.lengths) - 1)

    def encode(self, epoch: int) -> Message:
        """The encode stage's result. Of a text in pieces the last letter is not certain before a flush."""
        if isinstance(self.work, wire.TextWork):
            whole, size = self.work.flush, len(self.work.text) - (not self.work.flush)
            ids = np.arange(size, dtype=np.int32)
            lengths = (size,) if size else ()
            used = len(self.work.text) if whole else 0
            return wire.EncodedText(
                self.work.request_id, self.work.attempt, epoch, lengths, whole or not size, used, ids
            )
        if isinstance(self.work, wire.EncodeWork) and self.work.pieces:
            voice = encoded(self.work.request_id, epoch, self.work.attempt)
            return replace(voice, lengths=(), text_ids=np.zeros(0, np.int32), pieces="interleaved")
        if isinstance(self.work, wire.ConvertWork):
            return replace(
                source(self.work.request_id, epoch, self.work.attempt),
                source_tokens=np.array(self.tokens(0), np.int32),
            )
        ids = np.arange(sum(self.lengths), dtype=np.int32)
        result = encoded(self.work.request_id, epoch, self.work.attempt)
        return replace(result, lengths=self.lengths, text_ids=ids)

    def generate(self, epoch: int, pick: Pick) -> wire.Tokens | None:
        """The llm stage's next frame; the word that a sentence is over may come with its last token or after it.

        Of a text in pieces there is none while its ids are lacking, and an empty one now and then.
        """
        assert isinstance(self.work, wire.GenerateWork)
        whole = self.tokens(self.sentence)
        known = whole[: self.written.get(self.sentence, 0)] if self.work.pieces else whole
        filled = bool(self.work.pieces) and 0 < self.done < len(whole) and pick([True, False, False])
        made = [] if filled else known[self.done : self.done + pick(range(1, 4))]
        over = not self.work.pieces or self.sentence in self.finals
        if not made and not filled and not (over and self.done == len(whole)):
            return None
        self.done += len(made)
        final = over and not filled and self.done == len(whole) and (not made or pick([True, True, False]))
        last = final and self.sentence == len(self.lengths) - 1
        head = (self.work.request_id, self.work.attempt, epoch, self.seq, self.sentence, final, last)
        self.seq += 1
        if final:
            self.sentence, self.done = self.sentence + 1, 0
        return wire.Tokens(*head, np.array(made, np.int32))

    def decode(self, epoch: int, pick: Pick) -> wire.Audio | wire.Mel | None:
        """The decode stage's next frame; None while there is nothing to decode, or a sentence ends without one."""
        work = self.work
        assert isinstance(work, wire.DecodeWork)
        sentence, rows = self.sentence, ROWS_A_TOKEN[work.output]
        values = [token + index / 8 for token in self.received[sentence] for index in range(rows)]
        made = values[self.done : self.done + pick(range(1, 6))]
        over = sentence in self.finals and self.done + len(made) == len(values)
        last = over and sentence == len(self.lengths) - 1
        self.sentence, self.done = (sentence + 1, 0) if over and not last else (sentence, self.done + len(made))
        if not made and not last:
            return None
        head = (work.request_id, work.attempt, epoch, self.seq, sentence, last, self.rows, 0)
        self.seq += 1
        self.rows += len(made)
        array = np.array(made, np.float32)
        return wire.Audio(*head, array) if work.output == "audio" else wire.Mel(*head, array[:, None].repeat(80, 1))


@dataclass(repr=False)
class FakeWorker:
    """What a worker knows; `granted` is credit given and not used up by work.

    `silent`: it does not run at all, but will; `hung`: its engine does not, and it beats; `alive`: its process exists.
    """

    identity: bytes
    stage: str
    epoch: int
    granted: int = 0
    jobs: dict[str, Speech] = field(default_factory=dict)
    results: deque[Message] = field(default_factory=deque)
    alive: bool = True
    ready: bool = True
    silent: bool = False
    hung: bool = False
    progress: int = 0
    registrations: int = 0
    joining: int = 0
    """Registrations that are not answered yet."""

    def __repr__(self) -> str:
        return self.identity.decode()

    @property
    def loss(self) -> tuple[bytes, int]:
        """What stands for losing this registration of it."""
        return self.identity, self.registrations

    @property
    def working(self) -> bool:
        """Whether its engine runs."""
        return self.alive and not self.silent and not self.hung

    def lose_broker(self) -> None:
        """The broker is gone, and with it what was on its way: nothing of that is worked on any longer."""
        self.jobs.clear()
        self.results.clear()
        self.granted = self.joining = 0

    def advance(self, request_id: str, pick: Pick) -> bool:
        """One step of one job; True when that was its last."""
        job = self.jobs[request_id]
        result: Message | None
        if self.stage == "encode":
            result, ends = job.encode(self.epoch), True
        elif self.stage == "llm":
            result = frame = job.generate(self.epoch, pick)
            ends = frame is not None and frame.last
        else:
            result = heard = job.decode(self.epoch, pick)
            ends = heard is not None and heard.last
        if result:
            self.results.append(result)
        if ends:
            del self.jobs[request_id]
        return ends


@dataclass
class FakeRequest:
    """What a client knows of one request, and what happened to it that would explain an error."""

    id: str
    client: bytes
    output: str
    lengths: tuple[int, ...]
    credit: int
    asked: float
    live: bool = False
    """Its text comes in pieces, its last sentence is the end, without a letter."""
    said: int = 0
    """Letters and flushes said."""
    seq: int = 0
    frames: int = 0
    heard: int = 0
    last_word: Message | None = None
    accepted: bool = False
    gone: bool = False
    cancelled: bool = False
    severed: float = math.inf
    """When its connection last broke."""
    forgotten: bool = False
    """The broker that knew it died too early, or it failed while nobody listened."""
    refused_by_store: bool = False
    spoiled: bool = False
    """A worker sent something wrong for it."""
    failures: int = 0
    """How often a worker has said that it cannot do its part."""
    losses: set[tuple[bytes, int]] = field(default_factory=set)
    """Workers, by name and registration, that may have had it when they were lost."""

    @property
    def expected(self) -> list[float]:
        """All it should hear."""
        return speech_rows(self.id, self.output, self.lengths)

    def read(self, message: Message, now: float, deadline: float, waited_in_vain: bool) -> None:
        """The client is sent `message`. `waited_in_vain`: some stage has been without a worker."""
        if self.last_word:
            # Each of `Resume` and `Cancel` may be refused for itself.
            refused = self.cancelled and isinstance(message, wire.Error)
            assert message == self.last_word or refused, "something after the last word"
        elif isinstance(message, wire.Tokens | wire.Mel | wire.Audio):
            self._hear(message)
        elif isinstance(message, wire.End):
            assert (message.frames, self.heard) == (self.frames, len(self.expected)), "END before the whole"
            self.last_word = message
        elif isinstance(message, wire.Error):
            explanations = {
                "cancelled": self.cancelled,
                "deadline_exceeded": now >= self.asked + deadline,
                "no_worker": waited_in_vain,
                "unavailable": self.refused_by_store,
                "overloaded": not self.frames or self.severed < now,
                "unknown_request": self.forgotten or now - self.severed >= PATIENCE_S,
                "worker_failed": self.spoiled or (self.failures > 0 and len(self.losses) > 1),
                "poison": len(self.losses) > 1,
                "internal": self.spoiled,
            }
            assert explanations.get(message.code), f"{message.code} for no reason: {message.text}"
            self.last_word = message
        elif isinstance(message, wire.Written):
            assert self.live
        else:
            assert isinstance(message, wire.Accepted)
            assert not self.accepted, "accepted twice"
            self.accepted = True

    def say(self, most: int) -> wire.Piece | wire.Flush | wire.Finish:
        """The next of its text, of at most so many letters. A sentence has a letter for each of its tokens."""
        letters = "".join("x" * length + "|" for length in self.lengths[:-1])[self.said :]
        text = letters[: most if "|" not in letters[:most] else letters.index("|")]
        self.said += len(text) or 1
        self.seq += 1
        head = (self.id, self.seq - 1)
        if text:
            return wire.Piece(*head, text)
        return wire.Flush(*head) if letters[1:] else wire.Finish(*head)

    @property
    def writing(self) -> bool:
        """Whether more of its text is to be said."""
        told = self.said == sum(self.lengths) + len(self.lengths) - 1
        return self.live and not told and not self.last_word and not self.cancelled

    def resume(self, credit: int) -> wire.Resume:
        """It has a connection again, and room for `credit` frames."""
        self.credit = self.frames + credit
        return wire.Resume(self.id, self.accepted, self.frames, self.heard, credit)

    def _hear(self, message: wire.Tokens | wire.Mel | wire.Audio) -> None:
        assert message.seq == self.frames, "a frame lost or repeated"
        self.frames += 1
        assert self.frames <= self.credit, "a frame without credit"
        if isinstance(message, wire.Tokens):
            rows = message.tokens.tolist()
        else:
            first = message.first_sample if isinstance(message, wire.Audio) else message.first_frame
            assert first == self.heard, "samples lost or repeated"
            rows = (message.samples if isinstance(message, wire.Audio) else message.mel[:, 0]).tolist()
        assert rows == self.expected[self.heard : self.heard + len(rows)], "not the samples that are due"
        self.heard += len(rows)
