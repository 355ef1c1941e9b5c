"""`Client`: the blocking face, for scripts and threads."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from lighttts.client.events import Answered, Event, Failed
from lighttts.client.loop import ClientLoop
from lighttts.client.request import (
    Decoded,
    Method,
    Output,
    Recording,
    SampleFormat,
    make_convert,
    make_synth,
)
from lighttts.client.stream import Timeouts
from lighttts.client.sync_voices import Answer, SyncVoices
from lighttts.client.synthesis import Synthesis, Talk
from lighttts.client.voices import Asking
from lighttts.errors import InvalidInput, ProtocolError
from lighttts.transport.endpoints import DEFAULT_BROKER
from lighttts.transport.wire import GetStatus, Status


class Client(SyncVoices):
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

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        keys: str | PathLike[str] | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
    ) -> None:
        timeouts = Timeouts(connect=connect_timeout, chunk=timeout)
        self._loop = ClientLoop(broker, timeouts, Path(keys) if keys is not None else None)
        self._loop.close_with(self)

    def synthesize(
        self,
        text: str | Iterable[str],
        voice: str | None = None,
        prompt: Recording | None = None,
        prompt_text: str = "",
        *,
        instruct: str = "",
        style: str = "",
        seed: int | None = None,
        speed: float = 1.0,
        output: Output = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> Synthesis:
        """Asks for `text` to be spoken; returns at once, chunks are read from the result.

        text: what to say; or an iterable of its pieces, cut anywhere, which is run through in a thread of its own while
            they are spoken: see `talk`.
        voice: a preset or registered voice's name (see `voices`); without voice and prompt the broker's first one.
        prompt: speech to clone the voice of: an audio file's path, bytes or open binary file, at most 16 MiB.
        prompt_text: what is said in the prompt (zero-shot); without it the prompt may be of another language than the
            text (cross-lingual).
        instruct: how to speak, in words, such as "in a whisper"; goes with a voice or a prompt, not with a prompt_text.
        style: which of the model's language models speaks, where it has several; empty is the default.
        seed: 0 to 2**63-1; the same seed and text give the same audio. None: a random one, see `Synthesis.seed`.
        speed: 0.5 to 2.0. At another speed than 1 each sentence comes in one chunk, when all of it is made.
        output: "audio": samples (n,) float32 or, with format="s16", int16; "mel": log-mel frames (n, 80) float32, 50
            a second; "tokens": speech tokens (n,) int32, 25 a second.
        deadline: seconds for the whole request, retries included.
        retries: how often it is asked for again when it fails with a `retryable` error before its first chunk: after
            the error's `retry_after` and a random time, and within a budget that all requests of the client share.
        owner: for gateways: whose registered voices `voice` may be of those they serve.

        Raises `InvalidInput` here; every other error where the chunks are read.
        """
        if not isinstance(text, str):
            if retries:
                raise InvalidInput("text in pieces cannot be asked for again: leave out retries", field="retries")
            talk = self.talk(
                voice,
                prompt,
                prompt_text,
                instruct=instruct,
                style=style,
                seed=seed,
                speed=speed,
                output=output,
                format=format,
                deadline=deadline,
                owner=owner,
            )
            talk.write_all(text)
            return talk
        synth = make_synth(
            text,
            voice=voice,
            prompt=prompt,
            prompt_text=prompt_text,
            instruct=instruct,
            style=style,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            owner=owner,
        )
        return Synthesis(self, self._loop, synth, retries)

    def talk(
        self,
        voice: str | None = None,
        prompt: Recording | None = None,
        prompt_text: str = "",
        *,
        instruct: str = "",
        style: str = "",
        seed: int | None = None,
        speed: float = 1.0,
        output: Output = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        method: Method = "auto",
        owner: str = "",
    ) -> Talk:
        """Begins to speak a text that is still being written, by a language model say; all else as in `synthesize`.

            with client.talk(voice="heart") as speech:
                threading.Thread(target=play_all, args=(speech,)).start()     # for chunk in speech: play(chunk)
                for words in language_model:
                    speech.write(words)
                speech.end()

        method: "sentences" speaks each sentence as soon as it is whole, "interleaved" begins with its first words;
            "auto" does what the model was made for.
        deadline: seconds for the whole text; if None, some minutes after the last piece.

        Nothing of it is asked for again, and it does not go on after its connection was lost: then it fails with
        `Unavailable`. A text that has not ended must go on within 30 s of what was written last, or heard.
        """
        synth = make_synth(
            "",
            voice=voice,
            prompt=prompt,
            prompt_text=prompt_text,
            instruct=instruct,
            style=style,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            pieces=method,
            owner=owner,
        )
        return Talk(self, self._loop, synth)

    def convert(
        self,
        source: Recording,
        voice: str | None = None,
        prompt: Recording | None = None,
        *,
        seed: int | None = None,
        speed: float = 1.0,
        output: Decoded = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> Synthesis:
        """Asks for what is said in `source` in another voice (voice conversion); all else is as in `synthesize`.

        source: speech, 1 to 30 s: an audio file's path, bytes or open binary file, at most 16 MiB.
        voice, prompt: who is to say it.
        """
        asked = make_convert(
            source,
            voice=voice,
            prompt=prompt,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            owner=owner,
        )
        return Synthesis(self, self._loop, asked, retries)

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

    def _ask(self, asking: Asking, answer: type[Answer], *, patient: bool = False) -> Answer:
        mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop.query(asking, mailbox, patient=patient)
        event = mailbox.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Answered) and isinstance(event.message, answer):
            return event.message
        raise ProtocolError("the broker answered a question with something else")
