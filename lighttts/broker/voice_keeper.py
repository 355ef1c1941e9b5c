"""Answers the core's questions about voices in a thread of its own, for whoever keeps them makes one wait.

Recordings are kept in memory within a bound of bytes. One is used only after the store has said that its voice is still
there, and is dropped a minute after the last time it said so.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from lighttts import metrics
from lighttts.broker.breaker import Breaker
from lighttts.broker.voice_questions import Answer, AskVoices, Find, ListAll, Put, Question, Remove, Rename, Voiced
from lighttts.broker.voice_records import Room, VoiceRecord
from lighttts.broker.voice_store import VoiceStore
from lighttts.errors import InternalError, InvalidInput, LightTTSError, Overloaded, Unavailable
from lighttts.logs import get_logger
from lighttts.transport.wire import MAX_REGISTERED

WAITING = 1000
"""Most questions that wait."""
LINGER_S = 60.0
FAILURES = 2
"""Failures in a row after which the store is left alone for a while."""
CACHE = "recording"


class Recordings:
    """Recordings by digest, the least recently used forgotten first; `clock`: monotonic seconds. For one thread."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size = 0

    def get(self, digest: str) -> bytes | None:
        """A recording that is kept and whose voice, as the store has just said, is there."""
        kept = self._kept.get(digest)
        if kept:
            self.put(digest, kept[0])
        return kept[0] if kept else None

    def put(self, digest: str, recording: bytes) -> None:
        """Keeps a recording, forgetting others until it fits."""
        self.drop(digest)
        if len(recording) > self._limit:
            return
        while self.size + len(recording) > self._limit:
            self.drop(next(iter(self._kept)))
        self._kept[digest] = (recording, self._clock())
        self.size += len(recording)

    def drop(self, digest: str) -> None:
        """Forgets one."""
        kept = self._kept.pop(digest, None)
        self.size -= len(kept[0]) if kept else 0

    def expire(self) -> None:
        """Forgets those whose voices nobody has asked for lately."""
        until = self._clock() - LINGER_S
        for digest in [digest for digest, (_, at) in self._kept.items() if at < until]:
            self.drop(digest)


class VoiceKeeper:
    """Asks `store`; `answered` is called, in the keeper's thread, with a question's number and its answer.

    `room` bounds the voices, `cache` the bytes of recordings in memory; after failures the store is left alone for
    `open_s` seconds.
    """

    def __init__(
        self, store: VoiceStore, room: Room, cache: int, open_s: float, answered: Callable[[int, Answer], None]
    ) -> None:
        self._store = store
        self._room = room
        self._answered = answered
        self._recordings = Recordings(cache)
        self._breaker = Breaker(FAILURES, open_s)
        self._asked: queue.Queue[AskVoices | None] = queue.Queue()
        self._log = get_logger()
        self._thread = threading.Thread(target=self._run, name="voices", daemon=True)
        self._thread.start()

    def ask(self, asked: AskVoices) -> None:
        """Takes a question; never blocks."""
        if self._asked.qsize() >= WAITING:
            text = "too many questions about voices wait: try again later"
            self._answered(asked.number, Overloaded(text, retry_after=1.0))
        else:
            self._asked.put(asked)

    def close(self, timeout: float) -> None:
        """Ends the thread after the questions that wait, at most `timeout` seconds later."""
        self._asked.put(None)
        self._thread.join(timeout)
        self._store.close()

    def _run(self) -> None:
        while True:
            try:
                asked = self._asked.get(timeout=LINGER_S / 2)
            except queue.Empty:
                self._recordings.expire()
                continue
            if asked is None:
                return
            self._answered(asked.number, self._answer(asked.question))
            self._recordings.expire()

    def _answer(self, question: Question) -> Answer:
        now = time.monotonic()
        if not self._breaker.allow(now):
            wait = self._breaker.retry_after(now)
            text = f"registered voices cannot be had, their store fails: try again in {wait:.1f} s"
            return Unavailable(text, retry_after=wait)
        try:
            answer = self._done(question)
        except Unavailable as error:
            self._breaker.failed(now)
            self._log.warning("the store of voices fails", problem=error.text)
            return error
        except LightTTSError as error:
            self._breaker.succeeded()
            return error
        except Exception:
            self._log.exception("a question about voices failed")
            return InternalError("the broker failed at a question about voices: its log tells more")
        self._breaker.succeeded()
        return answer

    def _done(self, question: Question) -> Voiced:
        match question:
            case Find(owner, name, recording):
                return self._find(owner, name) if recording else Voiced((self._store.find(owner, name),))
            case ListAll(owner):
                shelves = self._store.shelves(owner)
                others = (voice for voice in shelves.shared.values() if voice.owner != owner)
                return Voiced((*shelves.own.values(), *others)[:MAX_REGISTERED])
            case Put(voice, content, over):
                old = self._store.put(voice, content, self._room, over=over)
                self._recordings.put(voice.digest, content)
                return Voiced((voice, old) if old else (voice,))
            case Remove(owner, name):
                gone = self._store.remove(owner, name)
                self._recordings.drop(gone.digest)
                return Voiced((gone,))
            case Rename(owner, name, to):
                return Voiced((self._store.rename(owner, name, to),))

    def _find(self, owner: str, name: str) -> Voiced:
        for _ in range(2):
            voice = self._store.find(owner, name)
            content = self._recordings.get(voice.digest)
            metrics.cache_lookups.labels(CACHE, "miss" if content is None else "hit").inc()
            if content is None:
                content = self._fetched(voice)
            if content:
                return Voiced((voice,), content)
        # Not even the second time: it was not replaced in between.
        raise InvalidInput(f"the recording of the voice {name!r} is lost: add the voice again", field="voice")

    def _fetched(self, voice: VoiceRecord) -> bytes:
        content = self._store.recording(voice)
        if content:
            self._recordings.put(voice.digest, content)
        return content
