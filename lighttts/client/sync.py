"""`Client`: the blocking face, for scripts and threads."""

from __future__ import annotations

import queue
from collections.abc import Iterable

from lighttts.client.events import Event
from lighttts.client.face import Face
from lighttts.client.sync_voices import SyncVoices
from lighttts.client.synthesis import Synthesis, Talk
from lighttts.client.voices import Answer, Asking, answer_in
from lighttts.transport.wire import GetStatus, SpeechRequest, Status


class Client(Face[Iterable[str], Synthesis, Talk], SyncVoices):
    """A connection to a LightTTS broker; use it in as many threads and for as many requests at once as you like.

        with Client() as client:
            for chunk in client.synthesize("Hello there."):
                play(chunk)                                   # float32 samples in -1..1, as they are made

    `broker`: its address, or those of several on one Redis: "tcp://a:5570,tcp://b:5570", or a sequence of them. The
    client is connected to one of them, at first any, and goes to the next when that one is lost, does not answer or has
    no workers; requests under way go on there.

    `timeout`: seconds without anything new of a request; `connect_timeout`: seconds until a broker answers, at first
    and after one was lost. The connection is made in the background: an absent broker is reported by the first call
    that needs it.
    A client does not survive a fork: start processes with `spawn` and make a client in each.

    `keys`: a folder with the key of a client and the public key of the broker (see docs/security.md); the connection is
    then encrypted, and only this broker is spoken to. Over ipc no key is needed.

    Raises `ConfigError` when `broker` is no address or a key cannot be used.
    """

    def status(self) -> Status:
        """What the broker is doing, and its workers. Raises `Unavailable`."""
        return self._ask(GetStatus, Status)

    def close(self) -> None:
        """Cancels what is in progress and closes the connection. Idempotent."""
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _speech(self, asked: SpeechRequest, retries: int) -> Synthesis:
        return Synthesis(self, self._loop, asked, retries)

    def _talk(self, asked: SpeechRequest) -> Talk:
        return Talk(self, self._loop, asked)

    def _spoken(self, asked: SpeechRequest, pieces: Iterable[str]) -> Synthesis:
        talk = self._talk(asked)
        talk.write_all(pieces)
        return talk

    def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop.query(asking, mailbox, patient=patient)
        return answer_in(mailbox.get(), answer)
